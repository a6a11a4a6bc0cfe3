"""Signals to the run, its group, its control group and its watchdog, inside the window and before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.engine.conftest import THAW_LIMIT_MS, Machine, held_ms, read_rcu
from tests.support import freezing, processes
from tests.support.command import (
    SnapshotRun,
    is_running,
    read_status,
    run_command,
    run_of,
    take_snapshot,
    wait_until_gone,
)
from tests.support.control_groups import ENTER, control_group
from tests.support.fault_server import Creates, NeverAnswers
from tests.support.filesystems import REPOSITORY


def outcomes(report: Any) -> set[str]:
    return {filesystem["outcome"] for filesystem in report["filesystems"]}


def kill(pid: int) -> int:
    """Kills a process of ours by its id; returns the instant just before."""
    now_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return now_ns


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


def test_watchdog_thaws_a_stopped_run_at_its_deadline_and_the_run_reports_it(machine: Machine) -> None:
    with machine.open_window(thaw_timeout=1.0) as run:
        stopped_ns = run.send(signal.SIGSTOP)
        # The window began before the signal, so its deadline is at most a second after it.
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_asked_to_end_in_its_window_finishes_and_reports(
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


def test_a_run_whose_watchdog_is_killed_ends_its_window_early(machine: Machine) -> None:
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


def test_nothing_is_frozen_when_the_watchdog_is_gone_before_the_window(machine: Machine) -> None:
    program = """
        session = prepare()
        (run,) = (run for run in vmsnapshot.status()["runs"] if run["run_id"] == session.run_id)
        os.kill(run["watchdog_pid"], signal.SIGKILL)
        try:
            session.run()
        except vmsnapshot.PrepareError as error:
            print(error.code)
        print(vmsnapshot.status()["runs"])
    """
    process = start_program(machine, program)
    output, errors = process.communicate(timeout=20)
    assert output.decode().split() == ["no-watchdog", "[]"], errors.decode()
    assert machine.server.requests() == []
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000.0


def test_what_both_left_frozen_is_told_and_thawed_on_request(machine: Machine) -> None:
    with machine.open_window() as run:
        run_id = run.run_id()
        watchdog_pid = run_of(read_status(), run_id)["watchdog_pid"]
        # The run is stopped first: it would see its watchdog end, and thaw.
        run.send(signal.SIGSTOP)
        kill(watchdog_pid)
        run.send(signal.SIGKILL)
        run.finish()
    wait_until_gone(watchdog_pid)
    assert read_rcu() == "1\n"
    for mount_point in machine.mount_points:
        assert freezing.is_frozen(mount_point)

    told = run_command("status", "--json")
    assert told.status == 3
    assert {item["mount_point"] for item in told.document["frozen"]} == set(map(str, machine.mount_points))
    for item in told.document["frozen"]:
        assert (item["run_id"], item["state"]) == (run_id, "frozen")
        assert item["since"].endswith("Z")
    assert told.document["rcu_expedited"]["held_by"] == run_id
    dead = run_of(told.document, run_id)
    assert (dead["alive"], dead["watchdog_alive"], dead["finished"]) == (False, False, False)

    refused = take_snapshot(machine.mount_points, [machine.server.uri("disk")])
    assert (refused.status, refused.error_code) == (3, "left-frozen")

    thawed_ns = time.monotonic_ns()
    thaw = run_command("thaw", "--json")
    assert thaw.status == 0
    assert {item["mount_point"] for item in thaw.document["thawed"]} == set(map(str, machine.mount_points))
    assert (thaw.document["failed"], thaw.document["rcu_restored"]) == ([], True)
    for writer in machine.writers:
        assert held_ms(writer, since_ns=thawed_ns) > 0
    machine.assert_rcu_is_back()
    assert run_command("status").status == 0


def test_thaw_leaves_a_run_alone_that_is_at_work(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=1500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        thaw = run_command("thaw", "--json")
        assert (thaw.status, thaw.document["thawed"], len(thaw.document["left_alone"])) == (1, [], 1)
        finished = run.finish()
    assert (finished.status, outcomes(finished.document)) == (0, {"thawed"})


# Before the window, and beside it.


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
def test_a_session_that_is_only_prepared_leaves_nothing(machine: Machine, ending: str) -> None:
    process = start_program(machine, f"session = prepare()\ntold(session)\n{ending}\nsys.stdin.read()")
    watchdog_pid = int(read_line(process))
    # Standard input is still open: except for "never run", the process is alive, so that it was not its end.
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
    # For people too: its window never began, so there is no time to show.
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


def assert_watchdog_thawed_all(run_id: str, reason: str) -> None:
    status = read_status()
    assert status["frozen"] == []
    assert status["rcu_expedited"]["held_by"] is None
    run = run_of(status, run_id)
    assert (run["alive"], run["fired"], run["finished"]) == (False, reason, True)
    assert {filesystem["thawed_by"] for filesystem in run["filesystems"]} == {"watchdog"}
    wait_until_gone(run["watchdog_pid"])
    assert not is_running(run["pid"])


def start_program(machine: Machine, program: str) -> subprocess.Popen[bytes]:
    """Runs ``program`` with ``prepare()``, for a run, and ``told(session)``, which tells its watchdog."""
    machine.server.script("disk", NeverAnswers())
    prologue = f"""
import os, signal, sys, textwrap, vmsnapshot
def prepare():
    plan = vmsnapshot.plan(include={[f"mount={path}" for path in machine.mount_points]!r})
    return vmsnapshot.prepare(plan, blobs=[{machine.server.uri("disk")!r}], thaw_timeout=2.0)
def told(session):
    (run,) = (run for run in vmsnapshot.status()["runs"] if run["run_id"] == session.run_id)
    print(run["watchdog_pid"], flush=True)
exec(textwrap.dedent({program!r}))
"""
    return subprocess.Popen(
        [sys.executable, "-c", prologue],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def read_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        raise AssertionError(process.communicate(timeout=5)[1].decode())
    return line
