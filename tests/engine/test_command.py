"""A command runs while everything is frozen, and nothing that it does delays the thaw."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vmsnapshot
from tests.engine.conftest import Machine, read_rcu
from tests.quiesce.conftest import HookDiary
from tests.support import processes
from tests.support.command import Finished, run_command
from tests.support.filesystems import ScratchFilesystem
from tests.support.freezing import is_frozen


def freeze(disk: ScratchFilesystem, *command: str | Path, options: tuple[str, ...] = ()) -> Finished:
    """Runs ``vmsnapshot freeze --json``."""
    mount = f"--mount=mount={disk.mount_point}"
    return run_command("freeze", "--json", mount, *options, "--", *command)


def test_command_runs_while_everything_is_frozen(disk: ScratchFilesystem) -> None:
    # The state of the run's filesystem in its ledger, as another process sees it.
    script = (
        "import sys, json; from vmsnapshot import status; print(len(status().frozen)); print(sys.argv[1:])"
    )
    python = Path(vmsnapshot.__file__).parents[2]
    finished = freeze(disk, "env", f"PYTHONPATH={python}", sys.executable, "-c", script, "a b", "")
    report = finished.document
    assert (finished.status, report["consistency"], report["why"]) == (0, "filesystem", None)
    assert finished.errors.endswith("1\n['a b', '']\n")
    command = report["command"]
    assert command["program"] == "/usr/bin/env"
    assert (command["outcome"], command["exit_status"], command["signal"]) == ("ended", 0, None)
    assert command["took_ms"] <= report["window_ms"]
    assert "a b" not in json.dumps(report)


@pytest.mark.parametrize(
    ("command", "status", "signal_number", "words"),
    [
        (["false"], 1, None, "`/usr/bin/false` ended with exit status 1"),
        (["sh", "-c", "exit 3"], 3, None, "ended with exit status 3"),
        (["sh", "-c", "kill -TERM $$"], None, 15, "was ended by signal 15"),
    ],
)
def test_command_that_fails_makes_the_set_worth_nothing(
    disk: ScratchFilesystem,
    command: list[str],
    status: int | None,
    signal_number: int | None,
    words: str,
) -> None:
    finished = freeze(disk, *command)
    report = finished.document
    assert (finished.status, report["consistency"], report["all_thawed"]) == (1, "none", True)
    assert words in report["why"]
    assert (report["command"]["exit_status"], report["command"]["signal"]) == (status, signal_number)


@pytest.mark.parametrize(
    "script",
    ["sleep 60", "trap '' TERM; sleep 60 & wait", "echo x > '{disk}/file'; sleep 60"],
    ids=["hangs", "traps TERM", "writes to the frozen filesystem"],
)
def test_command_that_does_not_end_is_killed_and_delays_nothing(machine: Machine, script: str) -> None:
    first = machine.filesystems[0].mount_point
    mounts = [f"--mount=mount={mount_point}" for mount_point in machine.mount_points]
    began = time.monotonic()
    finished = run_command(
        "freeze", "--json", *mounts, "--thaw-timeout=1", "--", "sh", "-c", script.format(disk=first)
    )
    assert time.monotonic() - began < 4
    report = finished.document
    assert (finished.status, report["command"]["outcome"]) == (1, "too-late")
    assert (report["command"]["signal"], report["watchdog"]["fired"]) == (9, None)
    assert report["window_ms"] < 1000
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000
    machine.assert_rcu_is_back()


def test_output_without_an_end_is_cut_off(disk: ScratchFilesystem) -> None:
    finished = freeze(disk, "sh", "-c", "yes; exit 0")
    report = finished.document
    assert (finished.status, report["command"]["output_is_truncated"]) == (0, True)
    assert report["window_ms"] < 2000


def test_what_the_command_leaves_running_does_not_delay_the_report(disk: ScratchFilesystem) -> None:
    began = time.monotonic()
    finished = freeze(disk, "sh", "-c", "sleep 3 & exit 0")
    assert time.monotonic() - began < 2
    assert (finished.status, finished.document["command"]["outcome"]) == (0, "ended")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("no-such-program", "no such file"),
        ("/etc/passwd", "permission denied"),
        ("/missing/x", "no such file"),
    ],
)
def test_program_that_cannot_be_started_is_an_error_before_the_freeze(
    disk: ScratchFilesystem, program: str, words: str
) -> None:
    finished = freeze(disk, program)
    assert (finished.status, finished.error_code) == (2, "bad-command")
    assert f"could not start `{program}`" in finished.errors
    assert words in finished.errors


def test_command_and_application_go_together(disk: ScratchFilesystem, tmp_path: Path) -> None:
    hook = HookDiary(tmp_path, "orders")
    finished = freeze(disk, "true", options=(hook.option(),))
    assert (finished.status, finished.document["consistency"]) == (0, "application")
    assert hook.words()[-1] == "released asked"


def test_command_that_was_not_run_does_not_stay_behind(disk: ScratchFilesystem) -> None:
    plan = vmsnapshot.plan(include=[f"mount={disk.mount_point}"])
    marker = f"4{os.getpid()}"
    with vmsnapshot.prepare(plan, command=["sleep", marker]):
        assert len(commands_with(marker)) == 1
    until = time.monotonic() + 2
    while commands_with(marker):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not is_frozen(disk.mount_point)


def test_python_gets_the_output(disk: ScratchFilesystem) -> None:
    plan = vmsnapshot.plan(include=[f"mount={disk.mount_point}"])
    with vmsnapshot.prepare(plan, command=["sh", "-c", "echo out; echo err >&2; cat"]) as session:
        report = session.run()
    assert report.command is not None
    assert (report.command.output, report.command.exit_status) == (b"out\nerr\n", 0)
    assert report.consistent


def test_killed_run_thaws_whatever_the_command_does(machine: Machine) -> None:
    program = (
        "import sys, vmsnapshot; plan = vmsnapshot.plan(include=sys.argv[1:]); "
        "vmsnapshot.prepare(plan, command=['sh', '-c', 'kill -KILL $PPID; sleep 2'], thaw_timeout=20.0).run()"
    )
    mounts = [f"mount={mount_point}" for mount_point in machine.mount_points]
    process = subprocess.Popen([sys.executable, "-c", program, *mounts])
    assert processes.end(process, limit_seconds=10)
    assert process.returncode == -signal.SIGKILL
    until = time.monotonic() + 2
    while any(map(is_frozen, machine.mount_points)) or read_rcu() != machine.rcu_before:
        assert time.monotonic() < until
        time.sleep(0.01)
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000


def commands_with(word: str) -> list[str]:
    """Returns the command lines of this machine that have a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if word in words:
            found.append(" ".join(words))
    return found
