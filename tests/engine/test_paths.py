"""Nobody but root decides what root opens: paths through directories of an ordinary user, and covered mounts.

A user can exchange directories that the path of a mount point leads through. The engine follows no
symbolic link there, and opens nothing before it knows what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.runs import kill_with_watchdog
from tests.support import freezing, processes
from tests.support.command import (
    SnapshotRun,
    run_command,
    take_snapshot,
)
from tests.support.fault_server import NeverAnswers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems

TRIES = 400
NOBODY = 65534

IN_OPEN = 0x20

# It becomes an ordinary user, and exchanges two directories of its own for ever.
EXCHANGE = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
if libc.renameat2(-100, b"p", -100, b"q", 2) != 0:
    raise OSError(ctypes.get_errno(), "renameat2")
print("exchanging", flush=True)
while True:
    libc.renameat2(-100, b"p", -100, b"q", 2)
"""

# It mounts a device in a mount namespace of its own, and makes a directory its root.
JAIL = """
import os, subprocess, sys
device, jail = sys.argv[1:]
subprocess.run(["mount", device, os.path.join(jail, "u/p/disk")], check=True)
os.chroot(jail)
print("mounted", flush=True)
sys.stdin.read()
"""

# It prepares runs, which opens the filesystems, and freezes nothing.
PREPARE = f"""
import sys, vmsnapshot
plan = vmsnapshot.plan(include=[sys.argv[1]])
assert len(plan.filesystems) == 1, plan
prepared = 0
for number in range({TRIES}):
    try:
        with vmsnapshot.prepare(plan):
            prepared += 1
    except vmsnapshot.PrepareError:
        pass
print(prepared)
"""


@contextlib.contextmanager
def started(
    arguments: list[str | Path], first_line: bytes, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program that prints a line when it is ready, and kills it at the end."""
    process = subprocess.Popen(arguments, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == first_line
        yield process
    finally:
        processes.kill(process)


def opens_of(target: Path) -> int:
    """Returns the descriptor of an inotify instance that counts how often a file is opened."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    assert libc.inotify_add_watch(watch, os.fsencode(target), IN_OPEN) > 0
    return watch


def was_opened(watch: int) -> bool:
    """Returns whether the watched file was opened."""
    try:
        return bool(os.read(watch, 4096))
    except BlockingIOError:
        return False


def make_users_directories(directory: Path, target: Path) -> Path:
    """Makes ``u/p`` and ``u/q`` of an ordinary user, a link to ``target`` in the second. Returns ``u``."""
    user = directory / "u"
    for name in ("p", "q"):
        (user / name).mkdir(parents=True)
    (user / "q" / "disk").symlink_to(target)
    for owned in (user, user / "p", user / "q"):
        os.chown(owned, NOBODY, NOBODY)
    return user


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that only root may read."""
    path = tmp_path / "of-root"
    path.touch(mode=0o600)
    return path


def test_root_opens_nothing_that_a_user_puts_in_the_way_of_a_mount_point(
    scratch: ScratchFilesystems, target: Path
) -> None:
    user = make_users_directories(scratch.directory, target)
    disk = scratch.make_on_loop("u/p/disk")
    watch = opens_of(target)
    with started([sys.executable, "-c", EXCHANGE], b"exchanging\n", user):
        prepared = processes.run_bounded(
            [sys.executable, "-c", PREPARE, f"{disk.device}"], limit_seconds=100.0
        )
    # Without a try that succeeded, nothing was exchanged at the right moment either.
    assert int(prepared) > 0
    assert not was_opened(watch)
    target.read_bytes()
    assert was_opened(watch)


def test_root_opens_nothing_outside_the_root_of_a_process_in_which_a_user_exchanges_directories(
    scratch: ScratchFilesystems, target: Path
) -> None:
    disk = scratch.make_on_loop("disk")
    processes.run_bounded(["umount", disk.mount_point])
    jail = scratch.directory / "jail"
    user = make_users_directories(jail, target)
    (user / "p" / "disk").mkdir()
    watch = opens_of(target)
    arguments: list[str | Path] = ["unshare", "--mount", "--propagation", "private"]
    arguments += [sys.executable, "-c", JAIL, disk.device, jail]
    with (
        started(arguments, b"mounted\n"),
        started([sys.executable, "-c", EXCHANGE], b"exchanging\n", user),
    ):
        prepared = processes.run_bounded(
            [sys.executable, "-c", PREPARE, f"{disk.device}"], limit_seconds=100.0
        )
    assert int(prepared) > 0
    assert not was_opened(watch)


def cover(directory: Path) -> None:
    """Mounts an empty tmpfs on a directory."""
    processes.run_bounded(["mount", "-t", "tmpfs", "none", directory])


@pytest.fixture
def pair(scratch: ScratchFilesystems, rescue: ArmRescue) -> tuple[ScratchFilesystem, ScratchFilesystem]:
    """Two filesystems with the rescue armed. A test covers the second one."""
    visible, covered = scratch.make_on_loop("visible"), scratch.make_on_loop("covered")
    rescue([visible.mount_point, covered.mount_point])
    return visible, covered


def outcomes(report: dict[str, object]) -> dict[str, object]:
    """Returns the outcome of each filesystem by its device number."""
    filesystems = report["filesystems"]
    assert isinstance(filesystems, list)
    return {item["device"]: item["outcome"] for item in filesystems}


def number_of(filesystem: ScratchFilesystem) -> str:
    """Returns the device number of a filesystem as the report has it."""
    number = filesystem.device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


@pytest.mark.parametrize("covers", [1, 3])
def test_a_filesystem_that_others_cover_is_frozen_below_them_and_stays_covered(
    scratch: ScratchFilesystems,
    pair: tuple[ScratchFilesystem, ScratchFilesystem],
    fault_server: StartFaultServer,
    covers: int,
) -> None:
    visible, covered = pair
    for _ in range(covers):
        cover(covered.mount_point)
    mounts = Path("/proc/self/mountinfo").read_text()
    finished = take_snapshot([scratch.directory / "*"], [fault_server().uri("disk")])
    # The covers were detached in a copy of the namespace only.
    assert Path("/proc/self/mountinfo").read_text() == mounts
    for _ in range(covers):
        processes.run_bounded(["umount", covered.mount_point])
    assert not freezing.is_frozen(covered.mount_point)
    report = finished.document
    assert outcomes(report) == {number_of(visible): "thawed", number_of(covered): "thawed"}
    assert (finished.status, report["consistency"]) == (0, "filesystem")


def test_a_filesystem_below_a_covered_directory_is_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    above = scratch.directory / "above"
    above.mkdir()
    covered = scratch.make_on_loop("above/covered")
    rescue([covered.mount_point])
    cover(above)
    finished = take_snapshot([covered.mount_point], [fault_server().uri("disk")])
    processes.run_bounded(["umount", above])
    assert outcomes(finished.document) == {number_of(covered): "thawed"}
    assert finished.status == 0


def test_thaw_reaches_a_filesystem_that_was_covered_after_a_killed_run_left_it_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    disk = scratch.make_on_loop("disk")
    rescue([disk.mount_point])
    server = fault_server(default=NeverAnswers())
    with SnapshotRun([disk.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        kill_with_watchdog(run)
    assert freezing.is_frozen(disk.mount_point)
    cover(disk.mount_point)
    thaw = run_command("thaw", "--json")
    processes.run_bounded(["umount", disk.mount_point])
    assert (thaw.status, thaw.document["failed"]) == (0, [])
    assert not freezing.is_frozen(disk.mount_point)


def test_a_covered_filesystem_that_cannot_be_reached_makes_the_set_inconsistent_and_is_named(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    visible, covered = scratch.make_on_loop("visible"), scratch.make_on_loop("covered")
    rescue([visible.mount_point])
    number = number_of(covered)
    processes.run_bounded(["umount", covered.mount_point])
    # It is mounted in another namespace only, and covered there.
    program = """
import subprocess, sys
device, mount_point = sys.argv[1:]
subprocess.run(["mount", device, mount_point], check=True)
subprocess.run(["mount", "-t", "tmpfs", "none", mount_point], check=True)
print("covered", flush=True)
sys.stdin.read()
"""
    arguments: list[str | Path] = ["unshare", "--mount", "--propagation", "private", sys.executable]
    arguments += ["-c", program, covered.device, covered.mount_point]
    with started(arguments, b"covered\n"):
        finished = take_snapshot([scratch.directory / "*"], [fault_server().uri("disk")])
        excluded = take_snapshot([visible.mount_point], [fault_server().uri("disk")])
    report = finished.document
    assert outcomes(report) == {number_of(visible): "thawed", number: "not-opened"}
    assert (finished.status, report["consistency"]) == (1, "crash")
    assert report["freeze_doubt_code"] == "not-opened"
    assert f"`{covered.mount_point}`" in report["why"]
    assert "covers it" in report["why"]
    # What the caller did not ask for is no reason to doubt the set.
    assert (excluded.status, outcomes(excluded.document)) == (0, {number_of(visible): "thawed"})
