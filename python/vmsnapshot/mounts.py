"""What is mounted, from ``/proc/self/mountinfo`` and from nothing else.

No mount point is opened or looked at here: a stat of a dead network mount can hang for ever. Which disks a
mount lies on is told by `vmsnapshot.handler.machine.disks`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# The kernel gives these a number without a device (major 0), because they can span several block devices.
_SPANNING_TYPES = frozenset({"btrfs", "bcachefs"})

# proc(5). Fields are parted by one blank each, and a source may be empty. What follows it is the filesystem's
# own text, which nobody promises to be free of blanks.
_LINE = re.compile(
    rb"(\d+) (\d+) (\d+:\d+) [^ ]* (/[^ ]*) ([^ ]*)(?: [^ ]+)*? - ([^ ]+) ([^ ]*) .*", re.DOTALL
)
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo, with the octal escapes decoded; a text is as `os.fsdecode` gives it."""

    mount_id: int
    parent_id: int
    """The mount that it is mounted on; may be one that this process cannot see."""
    device: str
    """The superblock's major:minor: the same for all mounts of it, and for all subvolumes of a btrfs."""
    mount_point: str
    options: str
    """The options of this mount, comma separated."""
    filesystem_type: str
    """With its subtype: ``ext4``, ``fuse.sshfs``."""
    source: str
    """What was mounted: ``/dev/sda1``, or any text at all."""

    @property
    def is_on_block_device(self) -> bool:
        """Whether it lies on a block device. A ``fuseblk`` does, but a process answers for it."""
        return not self.device.startswith("0:") or self.filesystem_type in _SPANNING_TYPES


def read_mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """Returns what is mounted in this mount namespace, in the kernel's order.

    Raises:
        OSError: mountinfo could not be read.
        ValueError: it is not as proc(5) has it.
    """
    return parse_mountinfo((proc / "self/mountinfo").read_bytes())


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """Parses the content of a mountinfo file.

    Raises:
        ValueError: a line is not as proc(5) has it.
    """
    # Not `splitlines`, which parts at a carriage return, and the kernel does not escape that.
    lines = content.split(b"\n")
    return tuple(_mount(line, number) for number, line in enumerate(lines, start=1) if line)


def visible(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Returns those of `mounts` that their mount point leads to: not what a later mount covers.

    A mount is covered exactly when the way to its own mount point does not end on it. That is one rule for a
    mount stacked on its mount point, one on a directory further up, and all that lies below either.
    """
    seen = {mount.mount_id for mount in mounts}
    # What is mounted on which mount (none: on one that cannot be seen, or on itself) at which path.
    on: dict[tuple[int | None, str], int] = {}
    for mount in mounts:
        is_top = mount.parent_id == mount.mount_id or mount.parent_id not in seen
        on[None if is_top else mount.parent_id, mount.mount_point] = mount.mount_id
    return tuple(mount for mount in mounts if _way_ends_on(mount.mount_point, on) == mount.mount_id)


def partition_count(mounts: Iterable[Mount]) -> int:
    """Returns how many block devices are mounted: ``partitionCount``. A device mounted twice counts once."""
    return len({mount.device for mount in mounts if mount.is_on_block_device})


def _mount(line: bytes, number: int) -> Mount:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"line {number} of mountinfo is not as proc(5) has it")
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
        # Mounts can be stacked on one mount point; the kernel goes to the topmost. No way is longer than the
        # number of mounts, unless the parents of a bad input go in a circle.
        while (current, prefix) in on and steps <= len(on):
            current = on[current, prefix]
            steps += 1
    return current


def _prefixes(path: str) -> list[str]:
    names = [name for name in path.split("/") if name]
    return ["/", *("/" + "/".join(names[:length]) for length in range(1, len(names) + 1))]
