"""Real filesystems to freeze: ext4, xfs and btrfs on loop devices and zram, stacked to any depth.

Everything lies below one scratch directory. The clean-up finds every mount below it and every loop
device with a file there, so nothing is left over if a test, Ctrl-C or SIGKILL interrupts between
two steps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support.mounts import is_scratch, mounts_below
from tests.support.processes import CommandError, run_bounded
from tests.support.rescue import thaw_at_once

REPOSITORY = Path(__file__).resolve().parents[2]

# The smallest size that each mkfs accepts, rounded up. Image files are sparse.
DEFAULT_SIZE_MIB = {"ext4": 64, "xfs": 320, "btrfs": 128}

_MKFS = {
    # No lazy initialization, so that no kernel thread writes while a test or a benchmark runs.
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}

_ZRAM_CONTROL = Path("/sys/class/zram-control")


class CleanupError(Exception):
    """Something could not be unmounted, detached or removed. The message names it and the cause."""


@dataclass(frozen=True)
class ScratchFilesystem:
    """A mounted filesystem of the tests."""

    mount_point: Path
    device: Path
    """The block device: ``/dev/loop3``."""
    filesystem_type: str
    image: Path | None
    """The file behind a loop device. None on zram."""


class ScratchFilesystems:
    """The filesystems of one test, demo or benchmark. `close` takes them down in the right order.

    Use it as a context manager, and from one thread only.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._zram_numbers: list[int] = []

    def make_on_loop(
        self,
        name: str,
        filesystem_type: str = "ext4",
        *,
        size_mib: int | None = None,
        inside: ScratchFilesystem | None = None,
    ) -> ScratchFilesystem:
        """Makes and mounts a filesystem on a loop device over a sparse file.

        ``inside`` puts that file on another scratch filesystem, and so stacks the two. Make the
        lower one larger: 512 MiB are enough for any of the defaults.
        """
        image = (inside.mount_point if inside else self.directory) / f"{name}.img"
        size_bytes = (size_mib or DEFAULT_SIZE_MIB[filesystem_type]) * 1024 * 1024
        with image.open("xb") as file:
            file.truncate(size_bytes)
        run_bounded([*_MKFS[filesystem_type], image])
        device = Path(run_bounded(["losetup", "--find", "--show", image]).strip())
        return self._mount(name, filesystem_type, device, image)

    def make_on_zram(self, name: str, *, size_mib: int = 64) -> ScratchFilesystem:
        """Makes and mounts an ext4 on a compressed RAM disk, to measure a freeze without a disk below."""
        if not _ZRAM_CONTROL.exists():
            run_bounded(["modprobe", "zram"])
        number = self._add_zram()
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size_mib * 1024 * 1024))
        device = Path(f"/dev/zram{number}")
        run_bounded([*_MKFS["ext4"], device])
        return self._mount(name, "ext4", device, None)

    def close(self) -> None:
        """Thaws, unmounts and detaches everything, within a time limit and despite Ctrl-C.

        Raises `CleanupError` after it has tried everything.
        """
        with _ctrl_c_ignored():
            problems = _take_down(self.directory)
            for number in self._zram_numbers:
                problems += _remove_zram(number)
            self._zram_numbers.clear()
        if problems:
            raise CleanupError("; ".join(problems))

    def __enter__(self) -> ScratchFilesystems:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def mount_copy(self, name: str, image: Path) -> ScratchFilesystem:
        """Mounts a copy of the image of an ext4, which must lie in the scratch directory."""
        device = Path(run_bounded(["losetup", "--find", "--show", image]).strip())
        return self._mount(name, "ext4", device, image)

    def unmount(self, filesystem: ScratchFilesystem) -> None:
        """Unmounts a filesystem that is not frozen, and detaches its loop device."""
        run_bounded(["umount", filesystem.mount_point])
        run_bounded(["losetup", "--detach", filesystem.device])
        filesystem.mount_point.rmdir()

    def _mount(self, name: str, filesystem_type: str, device: Path, image: Path | None) -> ScratchFilesystem:
        mount_point = self.directory / name
        mount_point.mkdir()
        run_bounded(["mount", "-t", filesystem_type, device, mount_point])
        return ScratchFilesystem(mount_point, device, filesystem_type, image)

    def _add_zram(self) -> int:
        # Reading hot_add makes the device. A Ctrl-C before its number is stored would lose it.
        with _ctrl_c_ignored():
            number = int((_ZRAM_CONTROL / "hot_add").read_text())
            self._zram_numbers.append(number)
        return number


def stop_after_an_error(filesystem: ScratchFilesystem) -> None:
    """Makes an ext4 read-only as it does by itself after an error (``errors=remount-ro``)."""
    run_bounded(["mount", "-o", "remount,errors=remount-ro", filesystem.mount_point])
    Path(f"/sys/fs/ext4/{filesystem.device.name}/trigger_fs_error").write_text("1")


def shut_down(filesystem: ScratchFilesystem) -> None:
    """Shuts an ext4 or an XFS down, as XFS does by itself after an error."""
    run_bounded(["xfs_io", "-x", "-c", "shutdown", filesystem.mount_point])


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields an empty directory on a real disk, and removes it with whatever is still mounted in it.

    It is below ``.work/`` in the repository, where the next run finds and removes what a killed one
    left over. If the repository's disk is nearly full, it is in the system's temporary directory.
    """
    base = REPOSITORY / ".work"
    base.mkdir(exist_ok=True)
    _sweep(base)
    if shutil.disk_usage(base).free < 2 * 1024**3:
        base = Path(tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=base)).resolve()
    try:
        yield directory
    finally:
        with _ctrl_c_ignored():
            _remove_directory(directory)


def loop_devices_below(directory: Path) -> list[tuple[Path, Path]]:
    """Returns each loop device whose file is below ``directory``, also a deleted one, with that file."""
    devices = []
    for backing_file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            image = Path(backing_file.read_text().rstrip("\n"))
            if directory in image.parents:
                devices.append((Path("/dev") / backing_file.parts[3], image))
    return devices


def _take_down(directory: Path) -> list[str]:
    """Thaws, unmounts and detaches what is below ``directory``. Returns what failed."""
    problems = []
    mounts = mounts_below(directory)
    try:
        points = dict.fromkeys(mount.mount_point for mount in mounts)
        thaw_at_once([point for point in points if not _is_shut_down(point) and is_scratch(point)])
    except (OSError, RuntimeError) as error:
        problems.append(f"thaw: {error}")
    # The last mount is on top. Its loop device has a file open on the one below, so detach it next.
    for mount in reversed(mounts):
        problem = _retry(["umount", mount.mount_point])
        if problem:
            problems.append(problem)
            with contextlib.suppress(CommandError):
                run_bounded(["umount", "--lazy", mount.mount_point])
        device = Path(mount.source)
        if device in dict(loop_devices_below(directory)):
            problems += _detach(device)
        elif device.name.startswith("zram"):
            problems += _remove_zram(int(device.name[len("zram") :]))
    for device, _ in loop_devices_below(directory):
        problems += _detach(device)
    return problems


def _is_shut_down(mount_point: Path) -> bool:
    """Returns whether it is an XFS that was shut down. It cannot be opened, and FIFREEZE fails on it."""
    try:
        mount_point.stat()
    except OSError as error:
        return error.errno == errno.EIO
    return False


def _detach(device: Path) -> list[str]:
    """Detaches a loop device and waits until the kernel has closed its file."""
    problem = _retry(["losetup", "--detach", device])
    backing_file = Path("/sys/block") / device.name / "loop" / "backing_file"
    until = time.monotonic() + 5.0
    while backing_file.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return [problem] if problem else []


def _remove_zram(number: int) -> list[str]:
    """Removes a zram device, which udev may have open for a moment."""
    until = time.monotonic() + 5.0
    while Path(f"/sys/block/zram{number}").exists():
        try:
            (_ZRAM_CONTROL / "hot_remove").write_text(str(number))
        except OSError as error:
            if time.monotonic() > until:
                return [f"remove /dev/zram{number}: {error}"]
            time.sleep(0.05)
    return []


def _retry(arguments: list[str | Path], *, limit_seconds: float = 10.0) -> str | None:
    """Repeats a command until it succeeds: a killed writer may keep a mount busy. Returns the last error."""
    until = time.monotonic() + limit_seconds
    while True:
        try:
            run_bounded(arguments)
        except CommandError as error:
            if time.monotonic() > until:
                return str(error)
            time.sleep(0.05)
        else:
            return None


def _remove_directory(directory: Path) -> None:
    problems = _take_down(directory)
    if mounts_below(directory):
        # Removing the directory now would remove the files of the filesystem that is still mounted.
        raise CleanupError("; ".join(problems))
    shutil.rmtree(directory)
    if problems:
        raise CleanupError("; ".join(problems))


def _sweep(base: Path) -> None:
    """Removes the directories of runs that are no longer alive."""
    for directory in base.glob("run-*-*"):
        pid = int(directory.name.split("-")[1])
        if not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(FileNotFoundError):
                _remove_directory(directory.resolve())


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Shields this process and the commands that it starts from Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
