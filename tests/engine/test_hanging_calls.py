"""A call of ours that hangs on a filesystem, or may hang: that filesystem must not be announced.

The calls hang because they wait for the disk, and the disk lies on a filesystem that the test has frozen.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.runs import kill
from tests.engine.test_long_jobs import devices_locked
from tests.support import freezing, processes
from tests.support.command import SnapshotRun, take_snapshot, wait_until_gone
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems


def make_stack(scratch: ScratchFilesystems) -> tuple[ScratchFilesystem, ScratchFilesystem]:
    """Makes an ext4 with dirty data whose disk is a file on an XFS. Returns both, the upper one first."""
    lower = scratch.make_on_loop("lower", "xfs", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    (upper.mount_point / "dirty").write_bytes(os.urandom(1 << 20))
    return upper, lower


def states(pid: int) -> set[str]:
    """Returns the states of the threads of a process. The first one may be a zombie while others go on."""
    found = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.add(stat.read_text().rpartition(")")[2].split()[0])
    return found


def hanging_companion(mount_point: Path, name: str, *, limit_seconds: float = 10.0) -> int:
    """Waits until a companion process of this name hangs in a call on a filesystem. Returns its pid."""
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (directory / "comm").read_text() == f"{name}\n":
                    opened = [str(link.readlink()) for link in (directory / "fd").iterdir()]
                    if str(mount_point) in opened and "D" in states(int(directory.name)):
                        return int(directory.name)
        time.sleep(0.02)
    raise AssertionError(f"no {name} hangs on {mount_point}")


def kill_while_it_hangs(pid: int) -> None:
    """Kills a companion, which ends as soon as the kernel lets go of it, without a reply."""
    kill(pid)
    time.sleep(0.3)
    assert "D" in states(pid)


def outcomes(report: Any) -> dict[str, str]:
    """Returns the outcome of each filesystem by the name of its directory."""
    return {Path(item["mount_point"]).name: item["outcome"] for item in report["filesystems"]}


def error_of(report: Any, name: str) -> str:
    """Returns the error of one filesystem."""
    (error,) = (item["error"] for item in report["filesystems"] if Path(item["mount_point"]).name == name)
    return str(error)


def test_a_btrfs_whose_question_died_with_its_process_is_left_out_by_name(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy = scratch.make_on_loop("healthy")
    lower = scratch.make_on_loop("lower", "xfs", size_mib=512)
    asked = scratch.make_on_loop("asked", "btrfs", size_mib=256, inside=lower)
    processes.run_bounded(["sync", "--file-system", asked.mount_point])
    rescue([healthy.mount_point, asked.mount_point, lower.mount_point], after_seconds=25.0)
    mount_points = [healthy.mount_point, scratch.directory / "aske*"]
    server = fault_server()
    with contextlib.ExitStack() as locked:
        locked.enter_context(devices_locked(asked, lower))
        with SnapshotRun(mount_points, [server.uri("disk")], "--sync-timeout=15") as run:
            kill_while_it_hangs(hanging_companion(asked.mount_point, "vmsnapshot-scru"))
            locked.close()
            finished = run.finish()
    assert outcomes(finished.document) == {"healthy": "thawed", "asked": "freeze-would-wait"}
    assert "has ended" in error_of(finished.document, "asked")
    assert (finished.status, finished.document["consistency"]) == (1, "crash")


def test_a_filesystem_whose_sync_died_with_its_process_is_frozen_and_the_report_says_so(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    upper, lower = make_stack(scratch)
    rescue([upper.mount_point, lower.mount_point], after_seconds=25.0)
    server = fault_server()
    with contextlib.ExitStack() as held:
        held.enter_context(freezing.frozen(lower.mount_point))
        with SnapshotRun([upper.mount_point], [server.uri("disk")], "--sync-timeout=15") as run:
            kill_while_it_hangs(hanging_companion(upper.mount_point, "vmsnapshot-sync"))
            held.close()
            finished = run.finish()
    # No syncfs was under way any more.
    assert (finished.status, outcomes(finished.document)) == (0, {"upper": "thawed"})
    (event,) = (item for item in finished.document["timeline"] if item["event"] == "sync-failed")
    assert "has ended" in event["detail"]


def test_a_filesystem_whose_sync_still_hangs_in_a_killed_process_is_left_out(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy = scratch.make_on_loop("healthy")
    upper, lower = make_stack(scratch)
    rescue([healthy.mount_point, upper.mount_point, lower.mount_point], after_seconds=25.0)
    mount_points = [healthy.mount_point, scratch.directory / "uppe*"]
    with freezing.frozen(lower.mount_point):
        with SnapshotRun(mount_points, [fault_server().uri("disk")], "--sync-timeout=3") as run:
            pid = hanging_companion(upper.mount_point, "vmsnapshot-sync")
            kill_while_it_hangs(pid)
            finished = run.finish()
        assert "D" in states(pid)
    assert outcomes(finished.document) == {"healthy": "thawed", "upper": "freeze-would-wait"}
    assert "syncfs" in error_of(finished.document, "upper")


def test_a_filesystem_on_which_a_call_of_an_earlier_run_still_hangs_is_left_out_until_it_returns(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy = scratch.make_on_loop("healthy")
    upper, lower = make_stack(scratch)
    server = fault_server()
    rescue([healthy.mount_point, upper.mount_point, lower.mount_point], after_seconds=40.0)
    mount_points = [healthy.mount_point, scratch.directory / "uppe*"]
    with freezing.frozen(lower.mount_point):
        earlier = take_snapshot(mount_points, [server.uri("first")], "--sync-timeout=0.5")
        assert outcomes(earlier.document)["upper"] == "freeze-would-wait"
        pid = hanging_companion(upper.mount_point, "vmsnapshot-sync")
        # Without a sync of its own, this run learns it in no other way.
        later = take_snapshot(mount_points, [server.uri("second")], "--sync-timeout=0")
        refused = take_snapshot([upper.mount_point], [server.uri("third")], "--sync-timeout=0")
    wait_until_gone(pid)
    assert outcomes(later.document) == {"healthy": "thawed", "upper": "freeze-would-wait"}
    assert str(pid) in error_of(later.document, "upper")
    assert (later.status, later.document["freeze_doubt_code"]) == (1, "freeze-would-wait")
    assert (refused.status, refused.error_code) == (1, "freeze-would-wait")
    finished = take_snapshot(mount_points, [server.uri("fourth")], "--sync-timeout=0")
    assert (finished.status, set(outcomes(finished.document).values())) == (0, {"thawed"})
