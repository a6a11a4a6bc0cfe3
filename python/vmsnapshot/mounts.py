"""Reads what is mounted from ``/proc/self/mountinfo``, and from nothing else.

This module never opens or stats a mount point, because a stat of a dead network mount can hang for ever.
`vmsnapshot.handler.machine.disks` finds the disks that a mount lies on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Filesystems that can span several block devices. The kernel gives them a device number with major 0.
_SPANNING_TYPES = frozenset({"btrfs", "bcachefs"})

# proc(5). One blank separates two fields, and the source may be empty. The text after the source belongs to
# the filesystem and may contain blanks.
_LINE = re.compile(
    rb"(\d+) (\d+) (\d+:\d+) [^ ]* (/[^ ]*) ([^ ]*)(?: [^ ]+)*? - ([^ ]+) ([^ ]*) .*", re.DOTALL
)
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. Octal escapes are decoded, and texts are as `os.fsdecode` returns them."""

    mount_id: int
    parent_id: int
    """The mount that this one is mounted on. This process may not see it."""
    device: str
    """The superblock's major:minor. All mounts of one superblock share it, and all subvolumes of a btrfs."""
    mount_point: str
    options: str
    """The options of this mount, separated by commas."""
    filesystem_type: str
    """The type with its subtype: ``ext4``, ``fuse.sshfs``."""
    source: str
    """The source as it was given to mount: ``/dev/sda1``, or any other text."""

    @property
    def is_on_block_device(self) -> bool:
        """Whether it lies on a block device. ``fuseblk`` does too, although a process serves it."""
        return not self.device.startswith("0:") or self.filesystem_type in _SPANNING_TYPES


def read_mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """Returns the mounts of this mount namespace, in the kernel's order.

    Raises:
        OSError: mountinfo could not be read.
        ValueError: a line does not have the form of proc(5).
    """
    return parse_mountinfo((proc / "self/mountinfo").read_bytes())


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """Parses the content of a mountinfo file.

    Raises:
        ValueError: a line does not have the form of proc(5).
    """
    # Not `splitlines`: it also splits at a carriage return, which the kernel does not escape.
    lines = content.split(b"\n")
    return tuple(_mount(line, number) for number, line in enumerate(lines, start=1) if line)


def visible(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Returns the mounts that their own mount point leads to, without those that another mount covers.

    A mount is covered if the path to its own mount point leads to another mount. This one rule handles a
    mount on the same mount point, a mount on a parent directory, and everything below either of them.
    """
    seen = {mount.mount_id for mount in mounts}
    # Which mount lies on which mount at which path. `None` stands for a mount that is not visible, or the
    # root.
    on: dict[tuple[int | None, str], int] = {}
    for mount in mounts:
        is_top = mount.parent_id == mount.mount_id or mount.parent_id not in seen
        on[None if is_top else mount.parent_id, mount.mount_point] = mount.mount_id
    return tuple(mount for mount in mounts if _way_ends_on(mount.mount_point, on) == mount.mount_id)


def partition_count(mounts: Iterable[Mount]) -> int:
    """Returns ``partitionCount``: how many block devices are mounted, each counted once."""
    return len({mount.device for mount in mounts if mount.is_on_block_device})


def _mount(line: bytes, number: int) -> Mount:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"line {number} of mountinfo does not have the form of proc(5)")
    mount_id, parent_id, device, mount_point, options, filesystem_type, source = match.groups()
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device.decode("ascii"),
        mount_point=_unescape(mount_point),
        options=_unescape(options),
        filesystem_type=_unescape(filesystem_type),
        source=_unescape(source),
    )


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def _way_ends_on(path: str, on: dict[tuple[int | None, str], int]) -> int | None:
    current: int | None = None
    steps = 0
    for prefix in _prefixes(path):
        # Several mounts can lie on one mount point, and the kernel follows them to the topmost. A path
        # crosses no more mounts than there are, unless the parents in a bad input form a circle.
        while (current, prefix) in on and steps <= len(on):
            current = on[current, prefix]
            steps += 1
    return current


def _prefixes(path: str) -> list[str]:
    names = [name for name in path.split("/") if name]
    return ["/", *("/" + "/".join(names[:length]) for length in range(1, len(names) + 1))]
