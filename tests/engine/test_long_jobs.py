"""Jobs of the kernel that hold a filesystem for a long time: a FIFREEZE would wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ArmRescue, StartFaultServer, require
from tests.engine.conftest import THAW_LIMIT_MS
from tests.support import freezing, processes
from tests.support.command import SnapshotRun, take_snapshot
from tests.support.fault_server import NeverAnswers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.writers import Writer

DATA_MIB = 64
SCRUB_MIB_PER_SECOND = 1


def make_slow_to_scrub(scratch: ScratchFilesystems) -> ScratchFilesystem:
    """Makes a btrfs whose scrub takes more than a minute."""
    # With room for another block group: a scrub makes the one that it reads read-only.
    filesystem = scratch.make_on_loop("scrubbed", "btrfs", size_mib=1024)
    (filesystem.mount_point / "data").write_bytes(os.urandom(DATA_MIB << 20))
    processes.run_bounded(["sync", "--file-system", filesystem.mount_point])
    uuid = processes.run_bounded(["blkid", "-o", "value", "-s", "UUID", filesystem.device]).strip()
    speed = Path(f"/sys/fs/btrfs/{uuid}/devinfo/1/scrub_speed_max")
    require(speed.exists(), "needs Linux 5.14 or newer, which can slow a scrub of btrfs down")
    speed.write_text(f"{SCRUB_MIB_PER_SECOND}m")
    return filesystem


@contextlib.contextmanager
def scrubbing(filesystem: ScratchFilesystem) -> Iterator[None]:
    """Scrubs a btrfs meanwhile."""
    scrub = start_scrub(filesystem.mount_point)
    try:
        yield
    finally:
        with contextlib.suppress(processes.CommandError):
            processes.run_bounded(["btrfs", "scrub", "cancel", filesystem.mount_point])
        assert processes.end(scrub, limit_seconds=10.0)


def start_scrub(mount_point: Path) -> subprocess.Popen[bytes]:
    """Starts a scrub, and waits until the kernel has begun it."""
    scrub = subprocess.Popen(
        ["btrfs", "scrub", "start", "-B", mount_point], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 5.0
    while "running" not in processes.run_bounded(["btrfs", "scrub", "status", mount_point]):
        assert time.monotonic() < until, "the scrub does not begin"
        time.sleep(0.02)
    return scrub


def test_a_filesystem_that_is_scrubbed_is_left_out_and_its_writers_do_not_stall(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy, scrubbed = scratch.make_on_loop("healthy"), make_slow_to_scrub(scratch)
    server = fault_server()
    rescue([healthy.mount_point, scrubbed.mount_point], after_seconds=15.0)
    with scrubbing(scrubbed), Writer(scrubbed.mount_point, interval_ms=2) as writer:
        writer.wait_until_writing()
        finished = take_snapshot([scratch.directory / "*"], [server.uri("disk")])
        refused = take_snapshot([scrubbed.mount_point], [server.uri("other")])
        longest_ms = writer.longest_stall_ms()
    report = finished.document
    outcomes = {item["mount_point"]: item["outcome"] for item in report["filesystems"]}
    assert outcomes == {
        str(healthy.mount_point): "thawed",
        str(scrubbed.mount_point): "freeze-would-wait",
    }
    assert (finished.status, report["consistency"]) == (1, "crash")
    assert report["freeze_doubt_code"] == "freeze-would-wait"
    assert f"`{scrubbed.mount_point}`" in report["why"]
    assert "scrub" in report["why"]
    # A scrub that is slowed down holds a writer for about a second by itself, and a FIFREEZE for a minute.
    assert longest_ms < 5000.0
    assert (refused.status, refused.error_code) == (1, "freeze-would-wait")
    assert [request.blob for request in server.requests()] == ["disk"]
    assert not freezing.is_frozen(healthy.mount_point)


def test_watchdog_cancels_a_scrub_that_began_after_the_last_look_once_the_deadline_has_passed(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy, scrubbed = scratch.make_on_loop("healthy"), make_slow_to_scrub(scratch)
    server = fault_server(default=NeverAnswers())
    rescue([healthy.mount_point, scrubbed.mount_point], after_seconds=20.0)
    program = f"""
import pathlib, vmsnapshot
from tests.engine.test_long_jobs import start_scrub
scrubs = []
def progress(phase):
    if phase == "freeze":
        scrubs.append(start_scrub(pathlib.Path({str(scrubbed.mount_point)!r})))
plan = vmsnapshot.plan(include=[{str(scratch.directory / "*")!r}])
session = vmsnapshot.prepare(
    plan, [{server.uri("disk")!r}], thaw_timeout=3.0, freeze_timeout=0.5, progress=progress
)
print(session.run().to_json(), flush=True)
scrubs[0].wait(10)
"""
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(Writer(filesystem.mount_point, interval_ms=2))
            for filesystem in (healthy, scrubbed)
        ]
        for writer in writers:
            writer.wait_until_writing()
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        output, _ = process.communicate(timeout=30.0)
        for writer in writers:
            writer.wait_until_writing()
        on_healthy_ms, on_scrubbed_ms = (writer.longest_stall_ms() for writer in writers)
    report = json.loads(output)
    assert (report["all_thawed"], report["consistent"]) == (True, False)
    # The thaw timeout of 3 s is far away.
    assert on_healthy_ms < 500.0 + 10 * THAW_LIMIT_MS
    # A scrub takes a minute, and its filesystem could not be written until its end.
    assert on_scrubbed_ms < 10_000.0
    errors = [item["error"] for item in report["filesystems"] if "scrubbed" in item["mount_point"]]
    assert "scrub resume" in errors[0]
    assert "was not frozen within 0.50 s" in report["why"] or "the watchdog" in report["why"]
    assert server.requests() == []
    status = processes.run_bounded(["btrfs", "scrub", "status", scrubbed.mount_point])
    assert "aborted" in status


@contextlib.contextmanager
def devices_locked(btrfs: ScratchFilesystem, lower: ScratchFilesystem) -> Iterator[None]:
    """Makes the kernel hold the lock on the devices of a btrfs, as a commit to a dead disk does.

    A trim holds it as well. This one trims what no block group uses, and its discard waits for the
    frozen XFS that the btrfs lies on. (ext4 would let it through.)
    """
    freezing.freeze(lower.mount_point)
    trim = subprocess.Popen(["fstrim", "--offset=1T", "--length=4096", btrfs.mount_point])
    try:
        until = time.monotonic() + 5.0
        while Path(f"/proc/{trim.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "D":
            assert time.monotonic() < until, "the trim does not wait"
            time.sleep(0.02)
        time.sleep(0.2)
        assert trim.poll() is None
        yield
    finally:
        with contextlib.suppress(OSError):
            freezing.thaw(lower.mount_point)
        assert processes.end(trim, limit_seconds=10.0)


def test_a_btrfs_that_does_not_answer_is_left_out_and_the_run_stays_killable(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    healthy = scratch.make_on_loop("healthy")
    lower = scratch.make_on_loop("lower", "xfs", size_mib=512)
    silent = scratch.make_on_loop("silent", "btrfs", size_mib=256, inside=lower)
    processes.run_bounded(["sync", "--file-system", silent.mount_point])
    server = fault_server()
    rescue([healthy.mount_point, silent.mount_point, lower.mount_point], after_seconds=20.0)
    # As long as the question of one run has no answer, no other run asks. A second trim of the same blocks
    # would find nothing to do, so the second half has a filesystem of its own.
    other = scratch.make_on_loop("other", "btrfs", size_mib=256, inside=lower)
    processes.run_bounded(["sync", "--file-system", other.mount_point])
    with devices_locked(other, lower):
        run = SnapshotRun([other.mount_point], [server.uri("other")], "--sync-timeout=15")
        with run:
            time.sleep(1.0)
            assert run.process.poll() is None
            run.send(signal.SIGKILL)
            assert run.process.wait(timeout=2.0) == -signal.SIGKILL
    with devices_locked(silent, lower):
        started = time.monotonic()
        finished = take_snapshot(
            [healthy.mount_point, scratch.directory / "silen*"], [server.uri("disk")], "--sync-timeout=0.5"
        )
        assert time.monotonic() - started < 5.0
    report = finished.document
    outcomes = {item["mount_point"]: item["outcome"] for item in report["filesystems"]}
    assert outcomes == {
        str(healthy.mount_point): "thawed",
        str(silent.mount_point): "freeze-would-wait",
    }
    assert (finished.status, report["freeze_doubt_code"]) == (1, "freeze-would-wait")
    assert "within 0.50 s" in report["why"]
    assert [request.blob for request in server.requests()] == ["disk"]
