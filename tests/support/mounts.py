"""What is mounted, and the guard that refuses to freeze the machine's ``/``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``."""

    mount_point: Path
    device: str
    """The superblock's major:minor as text."""
    filesystem_type: str
    source: str


class NotAScratchFilesystemError(Exception):
    """A path to be frozen or thawed is not the mount point of a filesystem of the tests."""


def read_mounts() -> list[Mount]:
    """Returns the mounts of this namespace, oldest first."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        mounts.append(
            Mount(
                mount_point=Path(_unescape(fields[4])),
                device=os.fsdecode(fields[2]),
                filesystem_type=os.fsdecode(rest[0]),
                source=_unescape(rest[1]),
            )
        )
    return mounts


def mounts_below(directory: Path) -> list[Mount]:
    """Returns the mounts on or below ``directory``, oldest first."""
    return [mount for mount in read_mounts() if directory in (mount.mount_point, *mount.mount_point.parents)]


def assert_not_root(path: Path) -> None:
    """Raises `NotAScratchFilesystemError` unless ``path`` is a mount point of something other than ``/``.

    It compares two numbers: ``st_dev``, on which the ioctls act, and the one in mountinfo. Two
    subvolumes of one btrfs differ in the first and share the second.
    """
    at_path = [mount for mount in read_mounts() if mount.mount_point == path]
    if not at_path:
        raise NotAScratchFilesystemError(f"{path} is not a mount point")
    root_devices = {mount.device for mount in read_mounts() if mount.mount_point == Path("/")}
    if at_path[-1].device in root_devices or path.stat().st_dev == Path("/").stat().st_dev:
        raise NotAScratchFilesystemError(f"{path} is on the filesystem of /")


def is_scratch(path: Path) -> bool:
    """Returns whether `assert_not_root` accepts ``path``."""
    try:
        assert_not_root(path)
    except NotAScratchFilesystemError:
        return False
    return True


def open_mount_directory(path: Path) -> int:
    """Opens a mount point for FIFREEZE and FITHAW, after `assert_not_root`. The caller closes it."""
    assert_not_root(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # Check what was really opened: the path could have been unmounted in between.
    if os.fstat(descriptor).st_dev == Path("/").stat().st_dev:
        os.close(descriptor)
        raise NotAScratchFilesystemError(f"{path} is on the filesystem of /")
    return descriptor


def _unescape(field: bytes) -> str:
    """Decodes mountinfo's octal escapes: ``\\040`` is a space."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))
