"""A loop device that never answers where its file lies, because the server of that file's filesystem is dead.

The server is detached, so no path shows it, and the kernel waits for it in state D.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer, require
from tests.engine.runs import outcomes
from tests.engine.test_filesystems import levels_below, moved_away
from tests.support import freezing
from tests.support.command import read_status, take_snapshot, wait_until_gone
from tests.support.filesystems import ScratchFilesystems
from tests.support.silent_filesystem import SilentFilesystem, ext4_inside_a_silent_filesystem

# A look at the mounts waits for a second. A run looks four times: for its plan, before it connects, before
# it freezes, and after the thaw.
LOOK_SECONDS = 1.0
RUN_LOOKS = 4
# For the start of a process on a machine that does other things.
SLACK_SECONDS = 3.0


@contextmanager
def stack_beside_a_silent_device(
    scratch: ScratchFilesystems,
) -> Iterator[tuple[list[Path], SilentFilesystem]]:
    """Yields the mount points of two stacked filesystems, the upper first, and the silent one beside them.

    Only the kernel knows that the upper one lies on the lower one.
    """
    require(Path("/dev/fuse").exists(), "needs FUSE, for a filesystem that does not answer")
    # Made first, so that it has the smaller number and is asked first.
    with ext4_inside_a_silent_filesystem(scratch, "silent") as (_, server):
        lower = scratch.make_on_loop("a", size_mib=512)
        upper = scratch.make_on_loop("b", inside=lower)
        with moved_away(scratch, upper):
            server.fall_silent()
            yield [upper.mount_point, scratch.directory / "c"], server


def companions() -> set[int]:
    """Returns the processes that ask loop devices."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text() == "vmsnapshot-loop\n":
                found.add(int(directory.name))
        except OSError:
            continue
    return found


def test_a_loop_device_that_never_answers_delays_a_plan_by_a_second_and_costs_no_other_its_order(
    scratch: ScratchFilesystems,
) -> None:
    with stack_beside_a_silent_device(scratch) as (_, server):
        started = time.monotonic()
        levels = levels_below(scratch.directory)
        elapsed = time.monotonic() - started
        assert server.waiting() == 1
        assert LOOK_SECONDS <= elapsed < LOOK_SECONDS + SLACK_SECONDS
        # Nothing is known of the silent one, so it freezes before all others.
        assert levels == {"silent": 0, "b": 1, "c": 2}
        waiting = companions()
        server.answer()
        for pid in waiting:
            wait_until_gone(pid)


@pytest.mark.timeout(120)
def test_a_run_beside_a_loop_device_that_never_answers_takes_its_snapshot_and_ends(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    with stack_beside_a_silent_device(scratch) as (mount_points, silent):
        rescue(mount_points)
        (mount_points[0] / "dirty").write_bytes(os.urandom(1 << 20))
        started = time.monotonic()
        finished = take_snapshot(mount_points, [server.uri("disk")])
        assert time.monotonic() - started < RUN_LOOKS * LOOK_SECONDS + SLACK_SECONDS
        report = finished.document
        assert (finished.status, report["consistent"]) == (0, True)
        assert [item["level"] for item in report["filesystems"]] == [0, 1]
        assert report["window_ms"] < LOOK_SECONDS * 1000
        assert not any(freezing.is_frozen(mount_point) for mount_point in mount_points)
        assert read_status()["frozen"] == []
        waiting = companions()
        assert len(waiting) >= 1
        # The end of the server ends what waits for it.
        silent.close()
        for pid in waiting:
            wait_until_gone(pid)


@pytest.mark.timeout(120)
def test_a_filesystem_on_a_loop_device_that_never_answers_is_frozen_like_others(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    require(Path("/dev/fuse").exists(), "needs FUSE, for a filesystem that does not answer")
    healthy = scratch.make_on_loop("healthy")
    server = fault_server()
    with ext4_inside_a_silent_filesystem(scratch, "silent") as (mount_point, silent):
        armed = rescue([mount_point, healthy.mount_point], after_seconds=15.0)
        silent.fall_silent()
        (mount_point / "dirty").write_bytes(os.urandom(1 << 20))
        finished = take_snapshot([mount_point, healthy.mount_point], [server.uri("disk")])
        # It keeps the filesystem busy.
        assert armed.cancel() == []
        assert (finished.status, finished.document["consistent"]) == (0, True)
        assert outcomes(finished.document) == {"thawed"}
