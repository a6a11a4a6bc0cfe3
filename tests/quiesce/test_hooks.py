"""Applications are held from before the freeze until after the thaw, and released whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartFaultServer
from tests.engine.conftest import Machine
from tests.quiesce.conftest import HookDiary, application_of, children_of, command_of, keeper_of
from tests.support.command import SnapshotRun, take_snapshot
from tests.support.fault_server import Creates
from tests.support.filesystems import ScratchFilesystem
from tests.support.freezing import is_frozen


def test_hook_holds_from_before_the_freeze_until_after_the_thaw(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders")
    server = fault_server()
    server.script("disk", Creates())
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], hook.option())
    report = finished.document
    assert (finished.status, report["consistency"], report["consistent"]) == (0, "application", True)
    application = application_of(report)
    assert application["name"] == "orders"
    assert (application["outcome"], application["proof"], application["error"]) == ("held", "script", None)
    assert hook.words() == ["started", "ready", "quiesce", "quiesced", "released asked"]
    at_ms = {event["event"]: event["at_ms"] for event in report["timeline"]}
    assert at_ms["application-quiesced"] < at_ms["freeze-called"]
    assert at_ms["application-released"] > at_ms["window-closed"]
    assert application["held_ms"] >= report["window_ms"]


def test_hooks_are_asked_in_order_and_released_in_reverse_order(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    hooks = [HookDiary(root_directory, name) for name in ("first", "second", "third")]
    server = fault_server()
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], *(hook.option() for hook in hooks))
    assert [item["outcome"] for item in finished.document["applications"]] == ["held"] * 3
    lives = [dict(hook.lives()[0]) for hook in hooks]
    for word, order in (("quiesce", lives), ("released asked", lives[::-1])):
        instants = [life[word] for life in order]
        assert instants == sorted(instants), word


@pytest.mark.parametrize(
    ("fault", "code", "outcome"),
    [
        ("ready=error no licence", "hook-failed", "not-ready"),
        ("ready=what", "bad-answer", "not-ready"),
        ("ready=exit", "session-lost", "not-ready"),
        ("ready=hang", "timed-out", "not-ready"),
        ("quiesced=error busy", "hook-failed", "not-quiesced"),
        ("quiesced=exit", "session-lost", "not-quiesced"),
        ("quiesced=hang", "timed-out", "not-quiesced"),
    ],
)
@pytest.mark.parametrize("is_required", [True, False])
def test_hook_that_fails_before_the_freeze_ends_the_run_only_if_it_is_required(
    disk: ScratchFilesystem,
    fault_server: StartFaultServer,
    root_directory: Path,
    fault: str,
    code: str,
    outcome: str,
    is_required: bool,
) -> None:
    other = HookDiary(root_directory, "other")
    hook = HookDiary(root_directory, "orders", fault)
    server = fault_server()
    options = ["wait=1", "ready=1", *([] if is_required else ["optional"])]
    began = time.monotonic()
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], other.option(), hook.option(*options))
    assert time.monotonic() - began < 5
    if is_required:
        assert (finished.status, finished.error_code) == (1, code)
        assert "application `orders`: the hook" in finished.errors
        assert server.requests() == []
        # Whoever was begun is released.
        is_begun = outcome == "not-quiesced"
        assert other.words()[-1] == ("released not-asked" if is_begun else "end")
        return
    report = finished.document
    assert (finished.status, report["consistency"]) == (0, "application")
    items = {item["name"]: item for item in report["applications"]}
    assert items["other"]["outcome"] == "held"
    assert (items["orders"]["outcome"], items["orders"]["error_code"]) == (outcome, code)
    assert items["orders"]["proof"] is None


def test_two_applications_of_one_name_are_refused(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders")
    server = fault_server()
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], hook.option(), hook.option())
    assert (finished.status, finished.error_code) == (2, "bad-application")
    assert "two applications are called `orders`" in finished.errors
    assert not hook.has_ended()


def test_hook_that_fails_after_the_thaw_leaves_the_set_worth_its_filesystems(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders", "released=exit")
    server = fault_server()
    for options, status in ((["optional"], 0), ([], 1)):
        finished = take_snapshot([disk.mount_point], [server.uri("disk")], hook.option(*options))
        report = finished.document
        assert (finished.status, report["consistency"], report["consistent"]) == (
            status,
            "filesystem",
            not status,
        )
        application = application_of(report)
        assert (application["outcome"], application["error_code"]) == ("lost", "hook-failed")
    assert report["why"].startswith("application `orders`: the hook")


def test_hook_that_dies_in_the_window_is_lost(machine: Machine, root_directory: Path) -> None:
    hook = HookDiary(root_directory, "orders")
    with machine.open_window(hook.option(), thaw_timeout=2.0) as run:
        (pid,) = children_of(keeper_of(run.process.pid))
        os.kill(pid, signal.SIGKILL)
        finished = run.finish()
    application = application_of(finished.document)
    assert (application["outcome"], application["error_code"]) == ("lost", "session-lost")


def test_run_that_is_killed_in_its_window_releases_the_hook_once(
    machine: Machine, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders")
    with machine.open_window(hook.option(), thaw_timeout=10.0) as run:
        killed_at = run.send(signal.SIGKILL)
        (life,) = hook.lives()
        assert [word for word, _ in life[-2:]] == ["quiesced", "released run-lost"]
        assert life[-1][1] - killed_at < 0.5e9
        machine.assert_thawed_within(500.0, since_ns=killed_at)
    assert len(hook.lives()) == 1


def test_keeper_that_is_killed_in_the_window_releases_the_hook_and_proves_nothing(
    machine: Machine, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders")
    with machine.open_window(hook.option(), thaw_timeout=2.0) as run:
        os.kill(keeper_of(run.process.pid), signal.SIGKILL)
        assert hook.words()[-2:] == ["quiesced", "end"]
        finished = run.finish()
    application = application_of(finished.document)
    assert (application["outcome"], application["error_code"]) == ("lost", "keeper-lost")
    assert finished.document["consistency"] != "application"


def test_keeper_that_is_killed_before_the_freeze_ends_the_run(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    hook = HookDiary(root_directory, "orders", "quiesced=hang")
    server = fault_server()
    with SnapshotRun([disk.mount_point], [server.uri("disk")], hook.option()) as run:
        keeper = keeper_of_soon(run)
        time.sleep(0.7)
        os.kill(keeper, signal.SIGKILL)
        finished = run.finish()
    assert (finished.status, finished.error_code) == (1, "keeper-lost")
    assert not is_frozen(disk.mount_point)
    assert server.requests() == []


def test_hook_is_released_if_its_run_does_not_go_on(machine: Machine, root_directory: Path) -> None:
    hook = HookDiary(root_directory, "orders")
    with machine.open_window(hook.option(), thaw_timeout=0.5) as run:
        stopped_at = run.send(signal.SIGSTOP)
        (life,) = hook.lives(limit_seconds=10.0)
        assert life[-1][0] == "released too-long"
        assert life[-1][1] - stopped_at < 6.5e9
        run.send(signal.SIGCONT)
        finished = run.finish()
    application = application_of(finished.document)
    assert (application["outcome"], application["error_code"]) == ("lost", "held-too-long")


def test_run_that_is_interrupted_while_it_waits_for_a_hook_freezes_nothing(
    disk: ScratchFilesystem, fault_server: StartFaultServer, root_directory: Path
) -> None:
    first = HookDiary(root_directory, "first")
    hook = HookDiary(root_directory, "orders", "quiesced=hang")
    server = fault_server()
    with SnapshotRun([disk.mount_point], [server.uri("disk")], first.option(), hook.option()) as run:
        deadline = time.monotonic() + 10
        while not any("orders.py" in command_of(pid) for pid in children_of(keeper_of_soon(run))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        sent_at = time.monotonic()
        run.send(signal.SIGTERM)
        finished = run.finish()
        assert time.monotonic() - sent_at < 3
    assert finished.status == 130
    assert not is_frozen(disk.mount_point)
    assert first.words()[-1].startswith("released ")
    assert server.requests() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda program: program.chmod(0o775), "can write to it"),
        (lambda program: program.chmod(0o644), "cannot be executed"),
        (lambda program: os.chown(program, 65534, 65534), "does not belong to root"),
        (lambda program: program.unlink(), "no such file"),
    ],
)
def test_program_that_others_could_have_written_is_not_started(
    disk: ScratchFilesystem,
    fault_server: StartFaultServer,
    root_directory: Path,
    change: Callable[[Path], None],
    words: str,
) -> None:
    hook = HookDiary(root_directory, "orders")
    change(hook.program)
    server = fault_server()
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], hook.option())
    assert (finished.status, finished.error_code) == (1, "bad-program")
    assert words in finished.errors
    assert not hook.has_ended()
    assert server.requests() == []


def keeper_of_soon(run: SnapshotRun) -> int:
    until = time.monotonic() + 10
    while True:
        try:
            return keeper_of(run.process.pid)
        except AssertionError:
            assert time.monotonic() < until
            time.sleep(0.01)
