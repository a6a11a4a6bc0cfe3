"""A session runs once, and leaves nothing behind if it does not run. A machine has one at a time."""

from __future__ import annotations

import sys

import pytest

import vmsnapshot
from tests.engine.api import assert_frozen
from tests.engine.conftest import Machine
from tests.engine.runs import read_line, start_program
from tests.support import processes
from tests.support.command import SnapshotRun, read_status, run_command, take_snapshot, wait_until_gone
from tests.support.fault_server import Creates
from tests.support.processes import run_bounded


@pytest.mark.usefixtures("root")
def test_a_session_runs_once_and_not_after_close(plan: vmsnapshot.Plan) -> None:
    session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
    report = session.run()
    # There was nothing to freeze. The set is not consistent, and nothing failed.
    assert (report.filesystems, report.consistent, report.all_thawed) == ([], False, True)
    assert report.why is not None
    assert (report.freeze_doubt_code, report.freeze_doubt) == ("nothing-frozen", report.why)
    assert report.host_call is None
    for value in (session, report, report.mode, report.watchdog, report.timeline[0]):
        assert_frozen(value)
    with pytest.raises(RuntimeError):
        session.run()
    session.close()
    with vmsnapshot.prepare(plan, thaw_timeout=1.0) as other:
        pass
    assert other.run_id != session.run_id
    with pytest.raises(RuntimeError):
        other.run()


@pytest.mark.usefixtures("root")
def test_an_exception_of_the_progress_callback_ends_the_preparation(plan: vmsnapshot.Plan) -> None:
    def stop(sentence: str) -> None:
        raise ValueError(sentence)

    with pytest.raises(ValueError, match="open-filesystems"):
        vmsnapshot.prepare(plan, progress=stop)
    # The lock was released: the next session can be prepared.
    vmsnapshot.prepare(plan).close()


@pytest.mark.usefixtures("root")
def test_a_forked_child_that_closes_its_copy_of_a_session_does_not_end_the_run() -> None:
    program = """
import os, vmsnapshot
plan = vmsnapshot.plan(include=[], exclude=["/**"])
session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
child = os.fork()
if child == 0:
    session.close()
    try:
        session.run()
    except RuntimeError:
        del session
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.run_id in [run.run_id for run in vmsnapshot.status().runs]
try:
    vmsnapshot.prepare(plan)
except vmsnapshot.PrepareError as error:
    assert error.code == "another-run", error.code
else:
    raise AssertionError("a second run was prepared beside the first")
assert session.run().all_thawed
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)


@pytest.mark.usefixtures("root")
def test_a_process_that_ignores_sigchld_can_start_a_watchdog() -> None:
    program = """
import signal, vmsnapshot
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
plan = vmsnapshot.plan(include=[], exclude=["/**"])
assert vmsnapshot.prepare(plan, thaw_timeout=1.0).run().watchdog.released
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)


def test_a_second_run_is_refused_before_it_freezes_anything(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=1500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        second = take_snapshot(machine.mount_points, [machine.server.uri("other")])
        assert (second.status, second.error_code) == (1, "another-run")
        finished = run.finish()
    assert (finished.status, finished.document["consistent"]) == (0, True)
    assert [request.blob for request in machine.server.requests()] == ["disk"]


@pytest.mark.parametrize(
    "ending",
    ["session.close()", "del session", "sys.exit()", "with session: pass"],
    ids=["closed", "dropped", "never run", "left"],
)
def test_a_session_that_is_only_prepared_leaves_nothing_behind(machine: Machine, ending: str) -> None:
    process = start_program(machine, f"session = prepare()\ntold(session)\n{ending}\nsys.stdin.read()")
    watchdog_pid = int(read_line(process))
    # Standard input is still open, so except for "never run" the process is alive: its end did not
    # end the watchdog.
    wait_until_gone(watchdog_pid)
    if "exit" not in ending:
        assert process.poll() is None
    process.communicate(timeout=10)
    assert read_status()["runs"] == []
    assert_next_run_is_consistent(machine)


def test_a_run_that_is_killed_when_it_is_only_prepared_has_frozen_nothing(machine: Machine) -> None:
    process = start_program(machine, "session = prepare()\ntold(session)\nsys.stdin.read()")
    watchdog_pid = int(read_line(process))
    processes.kill(process)
    wait_until_gone(watchdog_pid)
    # The table has no time to show, because the window never began.
    assert run_command("status").status == 0
    told = run_command("status", "--json")
    assert (told.status, told.document["frozen"]) == (0, [])
    assert [(run["alive"], run["fired"], run["finished"]) for run in told.document["runs"]] == [
        (False, None, True)
    ]
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000.0
    assert_next_run_is_consistent(machine)


def assert_next_run_is_consistent(machine: Machine) -> None:
    machine.server.script("disk", Creates())
    finished = take_snapshot(machine.mount_points, [machine.server.uri("disk")])
    assert (finished.status, finished.document["consistent"]) == (0, True)
    assert read_status()["runs"] == []
