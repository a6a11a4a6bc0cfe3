"""Other programs freeze, thaw and unmount the filesystems of a run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.conftest import THAW_LIMIT_MS, Machine, held_ms, read_rcu
from tests.support import freezing
from tests.support.command import (
    SnapshotRun,
    read_status,
    run_command,
    run_of,
    take_snapshot,
    wait_until_gone,
)
from tests.support.fault_server import Creates
from tests.support.filesystems import ScratchFilesystems
from tests.support.writers import Writer


def outcome_of(report: Any, mount_point: Path) -> Any:
    (found,) = (item for item in report["filesystems"] if item["mount_point"] == str(mount_point))
    return found


# Another program freezes.


def test_a_freeze_of_another_program_is_left_alone_and_nothing_is_sent(machine: Machine) -> None:
    theirs, ours = machine.mount_points
    with freezing.frozen(theirs):
        finished = take_snapshot([theirs, ours], [machine.server.uri("disk")], "--sync-timeout=0.5")
        assert freezing.is_frozen(theirs)
        assert not freezing.is_frozen(ours)
    assert finished.status == 1
    report = finished.document
    assert outcome_of(report, theirs)["outcome"] == "frozen-by-another"
    assert outcome_of(report, theirs)["thawed_by"] is None
    assert outcome_of(report, ours)["outcome"] in ("thawed", "not-frozen")
    assert (report["consistent"], report["all_thawed"]) == (False, True)
    assert (report["blobs"][0]["outcome"], report["blobs"][0]["attempts"]) == ("refused", 0)
    assert str(theirs) in report["why"]
    assert machine.server.requests() == []
    machine.assert_rcu_is_back()


def test_watchdog_does_not_thaw_the_freeze_of_another_program(machine: Machine) -> None:
    theirs, ours = machine.mount_points
    with freezing.frozen(theirs):
        finished = take_snapshot([theirs], [machine.server.uri("disk")], "--sync-timeout=0", thaw_timeout=0.3)
        time.sleep(0.4)
        assert freezing.is_frozen(theirs)
    assert (finished.status, finished.document["watchdog"]["fired"]) == (1, None)
    assert not freezing.is_frozen(ours)


def test_a_freeze_by_another_program_in_the_window_gets_ebusy_and_changes_nothing(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        for mount_point in machine.mount_points:
            assert freezing.start_freeze(mount_point).wait(timeout=5) == errno.EBUSY
        finished = run.finish()
    assert (finished.status, finished.document["consistent"]) == (0, True)
    for mount_point in machine.mount_points:
        assert not freezing.is_frozen(mount_point)


def test_a_freeze_by_another_program_after_the_window_is_not_in_the_status(machine: Machine) -> None:
    finished = take_snapshot(machine.mount_points, [machine.server.uri("disk")], thaw_timeout=0.5)
    assert finished.status == 0
    with freezing.frozen(machine.mount_points[0]):
        time.sleep(0.6)
        assert freezing.is_frozen(machine.mount_points[0])
        assert read_status()["frozen"] == []


# Another program thaws.


def test_a_thaw_by_another_program_in_the_window_makes_the_report_inconsistent(machine: Machine) -> None:
    behind, other = machine.mount_points
    machine.server.script("disk", Creates(after_ms=500))
    with SnapshotRun([behind, other], [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        freezing.thaw(behind)
        finished = run.finish()
    assert finished.status == 1
    report = finished.document
    assert report["blobs"][0]["outcome"] == "created"
    assert outcome_of(report, behind)["outcome"] == "thawed-by-another"
    assert outcome_of(report, behind)["thawed_by"] == "another"
    assert outcome_of(report, other)["outcome"] == "thawed"
    assert (report["consistent"], report["consistency"], report["all_thawed"]) == (False, "crash", True)
    assert str(behind) in report["why"]


def test_the_status_of_a_killed_run_names_a_thaw_by_another_program(machine: Machine) -> None:
    behind, other = machine.mount_points
    with machine.open_window() as run:
        run_id = run.run_id()
        freezing.thaw(behind)
        run.send(signal.SIGKILL)
        run.finish()
    dead = run_of(read_status(), run_id)
    wait_until_gone(dead["watchdog_pid"])
    dead = run_of(read_status(), run_id)
    assert {item["mount_point"]: item["thawed_by"] for item in dead["filesystems"]} == {
        str(behind): "another",
        str(other): "watchdog",
    }


# Another program unmounts.


def test_a_lazy_unmount_in_the_window_does_not_prevent_the_thaw(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    server = fault_server()
    server.script("disk", Creates(after_ms=500))
    with SnapshotRun([filesystem.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        subprocess.run(["umount", "--lazy", filesystem.mount_point], check=True, timeout=10)
        finished = run.finish()
    subprocess.run(["mount", filesystem.device, filesystem.mount_point], check=True, timeout=10)
    assert not freezing.is_frozen(filesystem.mount_point)
    assert (finished.status, finished.document["filesystems"][0]["outcome"]) == (0, "thawed")


def test_watchdog_thaws_a_filesystem_that_was_unmounted_in_the_window(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk", "xfs")
    rescue([filesystem.mount_point])
    server = fault_server()
    server.script("disk", Creates(after_ms=5000))
    with SnapshotRun([filesystem.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        run_id = run.run_id()
        subprocess.run(["umount", "--lazy", filesystem.mount_point], check=True, timeout=10)
        run.send(signal.SIGKILL)
        run.finish()
    wait_until_gone(run_of(read_status(), run_id)["watchdog_pid"])
    (item,) = run_of(read_status(), run_id)["filesystems"]
    assert item["thawed_by"] == "watchdog"
    subprocess.run(["mount", filesystem.device, filesystem.mount_point], check=True, timeout=10)
    assert not freezing.is_frozen(filesystem.mount_point)


# A freeze that hangs.


def test_a_freeze_that_takes_too_long_ends_the_window_and_is_named(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    third = scratch.make_on_loop("third")
    server = fault_server()
    with Writer(third.mount_point, interval_ms=2) as writer:
        writer.wait_until_writing()
        rescue([upper.mount_point, third.mount_point, lower.mount_point], after_seconds=15.0)
        freezing.freeze(lower.mount_point)
        run = SnapshotRun(
            [upper.mount_point, third.mount_point],
            [server.uri("disk")],
            "--sync-timeout=0",
            "--freeze-timeout=0.4",
            thaw_timeout=10.0,
        )
        with run:
            # The upper FIFREEZE waits for the lower filesystem, and the run for the FIFREEZE.
            time.sleep(2.0)
            assert run.process.poll() is None
            freezing.thaw(lower.mount_point)
            finished = run.finish()
        longest_ms = writer.longest_stall_ms()
    assert 300.0 < longest_ms < 400.0 + THAW_LIMIT_MS
    report = finished.document
    assert finished.status == 1
    assert (report["all_thawed"], report["freeze_doubt_code"]) == (True, "freeze-late")
    assert report["why"] == f"`{upper.mount_point}` was not frozen within 0.40 s"
    assert outcome_of(report, upper.mount_point)["freeze_ms"] > 1000.0
    assert outcome_of(report, third.mount_point)["frozen_ms"] < 400.0 + THAW_LIMIT_MS
    assert server.requests() == []


def test_a_freeze_that_hangs_on_a_lower_frozen_filesystem_does_not_delay_the_others(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, tmp_path: Path
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    third = scratch.make_on_loop("third")
    server = fault_server()
    rcu_before = read_rcu()
    with contextlib.ExitStack() as stack:
        on_upper = stack.enter_context(Writer(upper.mount_point, interval_ms=2))
        on_third = stack.enter_context(Writer(third.mount_point, interval_ms=2))
        for writer in (on_upper, on_third):
            writer.wait_until_writing()
        rescue([upper.mount_point, third.mount_point, lower.mount_point], after_seconds=15.0)
        freezing.freeze(lower.mount_point)
        run = stack.enter_context(
            SnapshotRun(
                [upper.mount_point, third.mount_point],
                [server.uri("disk")],
                "--sync-timeout=0",
                f"--report={tmp_path / 'report'}",
                thaw_timeout=1.0,
            )
        )
        # The process cannot end before FIFREEZE returns, so the test does not wait for its end.
        report = json.loads(read_document(run))
        assert json.loads((tmp_path / "report").read_text()) == report
        assert outcome_of(report, upper.mount_point)["outcome"] == "freeze-hung"
        assert outcome_of(report, third.mount_point)["outcome"] == "thawed"
        assert (report["all_thawed"], report["consistent"]) == (False, False)
        assert report["blobs"][0]["attempts"] == 0
        assert server.requests() == []
        assert read_rcu() == rcu_before
        longest_ms = on_third.longest_stall_ms()
        assert 300.0 < longest_ms < 1000.0 + THAW_LIMIT_MS

        told = run_command("status", "--json")
        assert told.status == 3
        (frozen,) = told.document["frozen"]
        assert (frozen["mount_point"], frozen["state"]) == (str(upper.mount_point), "announced")

        thawed_ns = time.monotonic_ns()
        freezing.thaw(lower.mount_point)
        assert held_ms(on_upper, since_ns=thawed_ns) < THAW_LIMIT_MS
        assert run.finish().status == 3
    dead = run_of(read_status(), report["run_id"])
    wait_until_gone(dead["watchdog_pid"])
    assert read_status()["frozen"] == []
    dead = run_of(read_status(), report["run_id"])
    # The run gave up at its own deadline, which is earlier, and released the watchdog.
    assert dead["fired"] == "told"
    states = {item["mount_point"]: item["thawed_by"] for item in dead["filesystems"]}
    assert states == {str(upper.mount_point): "watchdog", str(third.mount_point): "run"}


def read_document(run: SnapshotRun, *, limit_seconds: float = 10.0) -> bytes:
    """Reads a whole JSON document from standard output, which may stay open."""
    assert run.process.stdout is not None
    descriptor = run.process.stdout.fileno()
    until = time.monotonic() + limit_seconds
    output = b""
    while not output.endswith(b"\n}\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        assert readable, "the run printed no report"
        part = os.read(descriptor, 65536)
        assert part, f"the run ended without a report: {output!r}"
        output += part
    return output
