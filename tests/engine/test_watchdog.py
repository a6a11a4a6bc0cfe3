"""The run or its watchdog is killed, stopped or asked to end, in the window and before it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmsnapshot
from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.conftest import THAW_LIMIT_MS, Machine
from tests.engine.runs import kill, outcomes, start_program
from tests.support import freezing
from tests.support.command import SnapshotRun, is_running, read_status, run_of, take_snapshot, wait_until_gone
from tests.support.control_groups import ENTER, control_group
from tests.support.fault_server import Creates, CreatesWhenTold
from tests.support.filesystems import ScratchFilesystems

# The run.


def test_watchdog_thaws_at_once_when_the_run_is_killed(machine: Machine) -> None:
    with machine.open_window() as run:
        run_id = run.run_id()
        killed_ns = run.send(signal.SIGKILL)
        machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=killed_ns)
        assert run.finish().status == -signal.SIGKILL
    assert_watchdog_thawed_all(run_id, "parent-gone")


def test_watchdog_thaws_at_once_when_the_group_of_the_run_is_killed(machine: Machine) -> None:
    with machine.open_window() as run:
        run_id = run.run_id()
        killed_ns = time.monotonic_ns()
        os.killpg(run.process.pid, signal.SIGKILL)
        machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=killed_ns)
        assert run.finish().status == -signal.SIGKILL
    assert_watchdog_thawed_all(run_id, "parent-gone")


def test_watchdog_thaws_at_once_when_the_control_group_of_the_run_is_killed(machine: Machine) -> None:
    with control_group() as group:
        before = (*ENTER, str(group))
        with machine.open_window(before=before) as run:
            run_id = run.run_id()
            assert (group / "cgroup.procs").read_text().split() == [str(run.process.pid)]
            killed_ns = time.monotonic_ns()
            (group / "cgroup.kill").write_text("1")
            machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=killed_ns)
            assert run.finish().status == -signal.SIGKILL
        assert_watchdog_thawed_all(run_id, "parent-gone")


def test_watchdog_thaws_at_the_deadline_of_a_stopped_run_and_the_run_reports_it(machine: Machine) -> None:
    with machine.open_window(thaw_timeout=1.0) as run:
        stopped_ns = run.send(signal.SIGSTOP)
        # The window opened before the signal, so its deadline is at most a second after the signal.
        machine.assert_thawed_within(1000.0 + THAW_LIMIT_MS, since_ns=stopped_ns)
        assert [run["fired"] for run in read_status()["runs"]] == ["deadline"]
        assert read_status()["frozen"] == []
        run.send(signal.SIGCONT)
        finished = run.finish()
    assert finished.status == 1
    report = finished.document
    assert outcomes(report) == {"thawed-by-watchdog"}
    assert {filesystem["thawed_by"] for filesystem in report["filesystems"]} == {"watchdog"}
    assert (report["consistent"], report["all_thawed"]) == (False, True)
    assert report["watchdog"]["fired"] == "deadline"
    assert report["blobs"][0]["outcome"] == "unknown"
    assert report["window_ms"] < 1000.0 + THAW_LIMIT_MS


def test_a_stopped_run_whose_snapshots_were_all_created_is_not_consistent(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=300))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")], thaw_timeout=0.8) as run:
        run.wait_until_open(machine.server)
        stopped_ns = run.send(signal.SIGSTOP)
        machine.assert_thawed_within(800.0 + THAW_LIMIT_MS, since_ns=stopped_ns)
        run.send(signal.SIGCONT)
        finished = run.finish()
    assert finished.status == 1
    assert outcomes(finished.document) == {"thawed-by-watchdog"}
    assert finished.document["consistent"] is False


@pytest.mark.parametrize("is_thawed", [False, True], ids=["before-the-watchdog", "after-the-watchdog"])
def test_a_run_that_was_stopped_while_it_froze_and_goes_on_too_late_sends_nothing(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, is_thawed: bool
) -> None:
    server = fault_server()
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    rescue([upper.mount_point, lower.mount_point], after_seconds=20.0)
    (upper.mount_point / "dirty").write_bytes(bytes(1 << 20))
    # FIFREEZE waits for the disk, and the disk for the filesystem below.
    with freezing.frozen(lower.mount_point):
        run = SnapshotRun([upper.mount_point], [server.uri("disk")], "--sync-timeout=0", thaw_timeout=5.0)
        until = time.monotonic() + 10.0
        while not read_status()["frozen"]:
            assert time.monotonic() < until, "the run does not freeze"
        run.send(signal.SIGSTOP)
    with run:
        # The run waits for answers until 3.5 s after its start, and the watchdog thaws after 5 s.
        time.sleep(5.2 if is_thawed else 3.7)
        assert freezing.is_frozen(upper.mount_point) != is_thawed
        run.send(signal.SIGCONT)
        finished = run.finish()
    report = finished.document
    assert (finished.status, report["consistent"], report["all_thawed"]) == (1, False, True)
    assert (report["watchdog"]["fired"] == "deadline") == is_thawed
    assert (report["blobs"][0]["outcome"], report["blobs"][0]["attempts"]) == ("refused", 0)
    assert server.requests() == []
    assert not freezing.is_frozen(upper.mount_point)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_gets_a_signal_in_its_window_finishes_and_reports(
    machine: Machine, number: signal.Signals
) -> None:
    machine.server.script("disk", Creates(after_ms=400))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        run.send(number)
        finished = run.finish()
    assert finished.status == 0
    assert finished.document["consistent"] is True
    assert number.name in finished.errors
    assert [request.blob for request in machine.server.requests()] == ["disk"]


# The watchdog.


def test_a_run_thaws_at_once_when_its_watchdog_is_killed(machine: Machine) -> None:
    with machine.open_window(thaw_timeout=8.0) as run:
        run_id = run.run_id()
        killed_ns = kill(run_of(read_status(), run_id)["watchdog_pid"])
        machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=killed_ns)
        finished = run.finish()
    assert finished.status == 1
    report = finished.document
    assert outcomes(report) == {"thawed"}
    assert (report["consistent"], report["all_thawed"]) == (False, True)
    assert report["watchdog"]["released"] is False
    assert report["blobs"][0]["outcome"] == "unknown"
    assert read_status()["frozen"] == []


def test_a_run_freezes_nothing_when_its_watchdog_is_gone_before_the_window(machine: Machine) -> None:
    program = """
        session = prepare()
        (run,) = (run for run in vmsnapshot.status().runs if run.run_id == session.run_id)
        os.kill(run.watchdog_pid, signal.SIGKILL)
        try:
            session.run()
        except vmsnapshot.PrepareError as error:
            print(error.code)
        print(vmsnapshot.status().runs)
    """
    process = start_program(machine, program)
    output, errors = process.communicate(timeout=20)
    assert output.decode().split() == ["no-watchdog", "[]"], errors.decode()
    assert machine.server.requests() == []
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000.0


def test_a_run_holds_signals_until_its_watchdog_has_answered_the_release(machine: Machine) -> None:
    with thawed_run_with_a_stopped_watchdog(machine) as (run, _):
        signal_bit = 1 << (signal.SIGTERM - 1)
        assert blocked_signals(run.process.pid) & signal_bit
        assert outcomes(run.finish().document) == {"thawed"}


def test_a_watchdog_that_has_not_answered_the_release_keeps_the_lock(machine: Machine) -> None:
    with thawed_run_with_a_stopped_watchdog(machine) as (run, watchdog_pid):
        finished = run.finish()
        assert finished.document["watchdog"]["released"] is False
        assert is_running(watchdog_pid)
        uris = [machine.server.uri("disk")]
        assert take_snapshot(machine.mount_points, uris).error_code == "another-run"
    wait_until_gone(watchdog_pid)
    assert take_snapshot(machine.mount_points, uris).status == 0


@contextlib.contextmanager
def thawed_run_with_a_stopped_watchdog(machine: Machine) -> Iterator[tuple[SnapshotRun, int]]:
    """Yields a run that has thawed and waits for its watchdog, which is stopped, and the watchdog's pid."""
    # The window stays open until the watchdog is stopped. The status is read in this process: the start of
    # another one can take as long as the run waits.
    machine.server.script("disk", CreatesWhenTold())
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")], thaw_timeout=8.0) as run:
        run.wait_until_open(machine.server)
        (status,) = (other for other in vmsnapshot.status().runs if other.pid == run.process.pid)
        watchdog_pid = status.watchdog_pid
        assert watchdog_pid is not None
        os.kill(watchdog_pid, signal.SIGSTOP)
        try:
            machine.server.answer_waiting()
            machine.server.script("disk", Creates())
            until = time.monotonic() + 5.0
            while vmsnapshot.status().frozen:
                assert time.monotonic() < until, "the run does not thaw"
                time.sleep(0.001)
            yield run, watchdog_pid
        finally:
            os.kill(watchdog_pid, signal.SIGCONT)


def blocked_signals(pid: int) -> int:
    """Returns the signal mask of the main thread of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigBlk:"))
    return int(mask, 16)


def assert_watchdog_thawed_all(run_id: str, reason: str) -> None:
    status = read_status()
    assert status["frozen"] == []
    assert status["rcu_expedited"]["held_by"] is None
    run = run_of(status, run_id)
    assert (run["alive"], run["fired"], run["finished"]) == (False, reason, True)
    assert {filesystem["thawed_by"] for filesystem in run["filesystems"]} == {"watchdog"}
    wait_until_gone(run["watchdog_pid"])
    assert not is_running(run["pid"])
