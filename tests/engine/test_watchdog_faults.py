"""A thread of the watchdog has a fault (SIGSEGV) in the window of a run that cannot thaw."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

import vmsnapshot
from tests.engine.conftest import THAW_LIMIT_MS, Machine
from tests.engine.runs import outcomes
from tests.support.command import SnapshotRun, read_status, run_of, take_snapshot, wait_until_gone
from tests.support.fault_server import Creates, CreatesWhenTold
from tests.support.thread_faults import make_fault, needs_x86_64, other_threads


@needs_x86_64
def test_watchdog_thaws_all_at_once_and_ends_when_its_main_thread_has_a_fault(machine: Machine) -> None:
    with machine.open_window(thaw_timeout=8.0) as run:
        run_id = run.run_id()
        watchdog_pid = run_of(read_status(), run_id)["watchdog_pid"]
        report = report_after_fault(machine, run, watchdog_pid)
    assert report["watchdog"]["released"] is False
    wait_until_gone(watchdog_pid)
    # It left nothing that hinders the next run.
    machine.server.script("disk", Creates())
    assert take_snapshot(machine.mount_points, [machine.server.uri("disk")]).status == 0


@needs_x86_64
@pytest.mark.parametrize("index", [0, 1])
def test_watchdog_thaws_all_at_once_and_goes_on_when_a_worker_has_a_fault(
    machine: Machine, index: int
) -> None:
    with machine.open_window(thaw_timeout=8.0) as run:
        watchdog_pid = run_of(read_status(), run.run_id())["watchdog_pid"]
        workers = other_threads(watchdog_pid)
        assert len(workers) == 2
        report = report_after_fault(machine, run, workers[index])
    assert report["watchdog"]["released"] is True
    wait_until_gone(watchdog_pid)


@needs_x86_64
def test_watchdog_thaws_all_and_puts_rcu_back_when_every_thread_has_a_fault_and_the_run_is_killed(
    machine: Machine,
) -> None:
    with machine.open_window(thaw_timeout=8.0) as run:
        run_id = run.run_id()
        watchdog_pid = run_of(read_status(), run_id)["watchdog_pid"]
        workers = other_threads(watchdog_pid)
        run.send(signal.SIGSTOP)
        fault_ns = time.monotonic_ns()
        for thread_id in (*workers, watchdog_pid):
            make_fault(thread_id)
        machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=fault_ns)
        wait_until_gone(watchdog_pid)
        run.send(signal.SIGKILL)
        run.finish()
    status = read_status()
    assert (status["frozen"], run_of(status, run_id)["finished"]) == ([], True)
    # As the run did not put it back, the next one does.
    machine.server.script("disk", Creates())
    assert take_snapshot(machine.mount_points, [machine.server.uri("disk")]).status == 0
    assert read_status()["rcu_expedited"]["held_by"] is None
    machine.assert_rcu_is_back()


def test_a_signal_of_a_fault_that_a_process_sends_to_the_watchdog_changes_nothing(machine: Machine) -> None:
    machine.server.script("disk", CreatesWhenTold())
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")], thaw_timeout=8.0) as run:
        run.wait_until_open(machine.server)
        # The status is read in this process: the start of another one takes a part of the window.
        (status,) = (other for other in vmsnapshot.status().runs if other.pid == run.process.pid)
        watchdog_pid = status.watchdog_pid
        assert watchdog_pid is not None
        # Several at once used to fill the stack of their handlers.
        for _ in range(20):
            for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
                os.kill(watchdog_pid, number)
        machine.server.answer_waiting()
        finished = run.finish()
    report = finished.document
    assert (finished.status, report["freeze_doubt"], report["consistent"]) == (0, None, True)
    assert (report["watchdog"]["released"], report["watchdog"]["fired"]) == (True, None)
    wait_until_gone(watchdog_pid)


def report_after_fault(machine: Machine, run: SnapshotRun, thread_id: int) -> Any:
    """Stops the run and lets a thread of its watchdog have a fault. Returns the report of the run.

    Checks that all is thawed at once, and that the report says so."""
    run.send(signal.SIGSTOP)
    fault_ns = time.monotonic_ns()
    make_fault(thread_id)
    machine.assert_thawed_within(THAW_LIMIT_MS, since_ns=fault_ns)
    (status,) = read_status()["runs"]
    assert status["fired"] == "fault"
    run.send(signal.SIGCONT)
    finished = run.finish()
    assert finished.status == 1
    report = finished.document
    assert outcomes(report) == {"thawed-by-watchdog"}
    assert (report["consistent"], report["all_thawed"]) == (False, True)
    assert report["watchdog"]["fired"] == "fault"
    machine.assert_rcu_is_back()
    return report
