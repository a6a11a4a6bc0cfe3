"""Computes how much data the disks of a backup contain: ``totalUsedSizeInBytes``, the base of the billing.

The result is that of df for every filesystem on a local block device, without df: one row per device, and
used = (blocks - free blocks) x fragment size. Chapter 2.6 of the extension's contract defines which rows
count. A network share or a FUSE filesystem without its other side hangs the caller that asks for its size.
Therefore these are only named by type and not measured.

btrfs and ZFS do not count, as always in Azure Backup. The service would have to decide to count them.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmsnapshot import Mount
from vmsnapshot.handler.machine.disks import Disks, is_on_block_device
from vmsnapshot.handler.settings.wire import OS_DISK_LUN, Pair, Settings

DEFAULT_LIMIT_SECONDS = 5.0
"""How long `compute` may take. It takes milliseconds unless a filesystem hangs."""

_SHARE_TYPES = frozenset({"fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "smbfs"})
# These do not count either, but `networkFSTypePresentInMount` does not include them.
_OTHER_UNCOUNTED_TYPES = frozenset(
    {
        *("overlay", "overlayfs", "aufs", "lustre", "secfs2", "zfs", "btrfs", "iso9660"),
        # The contract does not name these, and would count them. Their data is on another machine.
        *("9p", "afs", "ceph", "virtiofs"),
    }
)
_MEMORY_TYPES = frozenset({"tmpfs", "devtmpfs", "ramfs", "rootfs"})
_KNOWN_TYPES = frozenset({"ext2", "ext3", "ext4", "f2fs", "jfs", "reiserfs", "vfat", "xfs"})
_GLUSTER_SNAPSHOTS = "/run/gluster/snaps/"
_OS_MOUNT_POINTS = frozenset({"/", "/boot/efi"})


@dataclass(frozen=True)
class Sizes:
    """The sizes in the report."""

    total_used_bytes: int
    failed: bool
    """``isSizeComputationFailed``: the total is 0 or, if only the LUNs are unknown, that of all disks."""
    telemetry: tuple[Pair, ...]
    why: str = ""
    """Why it failed, for the log."""


class _NotMeasuredError(Exception):
    """The size of a filesystem is not known, and thus the sum is not known either."""


class _Sum(enum.Enum):
    """The sum that a row is added to."""

    USED = enum.auto()
    TEMPORARY = enum.auto()
    MEMORY = enum.auto()
    LOOP = enum.auto()
    GLUSTER = enum.auto()


@dataclass(frozen=True)
class _Row:
    """One row of df: a device with all its visible mounts."""

    mounts: tuple[Mount, ...]

    @property
    def device(self) -> str:
        return self.mounts[0].device

    @property
    def filesystem_type(self) -> str:
        return self.mounts[0].filesystem_type

    @property
    def mount_points(self) -> frozenset[str]:
        return frozenset(mount.mount_point for mount in self.mounts)


def compute(
    settings: Settings,
    mounts: Sequence[Mount],
    disks: Disks,
    *,
    only_local: bool,
    limit_seconds: float = DEFAULT_LIMIT_SECONDS,
) -> Sizes:
    """Computes how much data the disks of the job contain. Never raises: a failure is part of the result.

    With `only_local` (``onlyLocalFilesystems``), network shares are not named either.

    Blocking: at most `limit_seconds`. If a filesystem hangs for longer, a thread of this process waits for
    it, and the process cannot end before the kernel finishes that call.
    """
    facts = (*_billing_type(settings), *network_shares(mounts))
    try:
        return _compute(settings, mounts, disks, facts, only_local, limit_seconds)
    except Exception as error:  # The report is more important than its size, whatever this error is.
        return Sizes(0, True, facts, f"could not compute the used size: {_cause(error)}")


def not_computed(settings: Settings, why: str) -> Sizes:
    """Returns the sizes of a job whose machine cannot be read."""
    return Sizes(0, True, _billing_type(settings), f"could not compute the used size: {why}")


def network_shares(mounts: Iterable[Mount]) -> tuple[Pair, ...]:
    """Returns ``networkFSTypePresentInMount`` if there is a FUSE, NFS or SMB mount."""
    is_present = any(_is_share(mount.filesystem_type) for mount in mounts)
    return (Pair("networkFSTypePresentInMount", "True"),) if is_present else ()


def _compute(
    settings: Settings,
    mounts: Sequence[Mount],
    disks: Disks,
    facts: tuple[Pair, ...],
    only_local: bool,
    limit_seconds: float,
) -> Sizes:
    rows = _rows(mounts)
    only_os_disk = settings.custom.is_only_os_disk_backup_enabled is True
    luns = _luns(settings, mounts, disks)
    sums = {
        row.device: kind
        for row in rows
        if (kind := _sum_of(row, settings, disks, luns, only_os_disk)) is not None
    }
    measured = [row for row in rows if row.device in sums]
    used_bytes = _measure(measured, limit_seconds)
    totals = dict.fromkeys(_Sum, 0)
    for row in measured:
        totals[sums[row.device]] += used_bytes[row.device]
    counted = [row for row in measured if sums[row.device] is _Sum.USED]
    unknown = [row for row in counted if row.filesystem_type not in _KNOWN_TYPES]
    on_sd = [row for row in counted if _is_on_sd(row, disks)]
    telemetry = (
        *facts,
        *_types("unknownFSTypeInDf", unknown),
        *_kib("totalUsedunknownFS", sum(used_bytes[row.device] for row in unknown)),
        *_types("networkFSTypeInDf", [row for row in rows if _is_named(row, only_local)]),
        *_kib("glusterFSSize", totals[_Sum.GLUSTER]),
        *_kib("tempDisksSize", totals[_Sum.TEMPORARY]),
        *_kib("ramDisksSize", totals[_Sum.MEMORY]),
        *_kib("loopDevicesSize", totals[_Sum.LOOP]),
        *_kib("totalsdSize", sum(used_bytes[row.device] for row in on_sd)),
    )
    why = "" if luns is None or luns else "could not find the LUN of any disk"
    return Sizes(totals[_Sum.USED], bool(why), telemetry, why)


def _rows(mounts: Sequence[Mount]) -> list[_Row]:
    by_device: dict[str, list[Mount]] = {}
    for mount in mounts:
        if mount.is_visible:
            by_device.setdefault(mount.device, []).append(mount)
    return [_Row(tuple(same)) for same in by_device.values()]


def _luns(settings: Settings, mounts: Sequence[Mount], disks: Disks) -> Mapping[str, int] | None:
    """Returns the LUN of each disk, or `None` if all disks count and the LUNs do not matter."""
    are_needed = settings.disks.luns and settings.disks.any_disk_excluded
    return disks.luns_by_disk(mounts) if are_needed else None


def _sum_of(
    row: _Row, settings: Settings, disks: Disks, luns: Mapping[str, int] | None, only_os_disk: bool
) -> _Sum | None:
    """Returns the sum of `row`, or `None` if it is not measured. The rules have the order of the contract."""
    mount = row.mounts[0]
    if _is_uncounted(row.filesystem_type):
        return None
    if row.filesystem_type in _MEMORY_TYPES:
        return _Sum.MEMORY
    if not is_on_block_device(mount):
        return None
    if disks.is_on_resource_disk(mount) and not only_os_disk:
        return _Sum.TEMPORARY
    # The file of a loop device lies on a filesystem with its own row.
    if disks.is_on_loop_device(mount):
        return _Sum.LOOP
    if any(mount_point.startswith(_GLUSTER_SNAPSHOTS) for mount_point in row.mount_points):
        return _Sum.GLUSTER
    if only_os_disk:
        return _Sum.USED if "/" in row.mount_points else None
    # If no LUN is known, everything counts, and the report marks the size as failed.
    return _Sum.USED if not luns or _is_included(row, settings.disks.luns, disks, luns) else None


def _is_included(row: _Row, included: Sequence[int], disks: Disks, luns: Mapping[str, int]) -> bool:
    below = disks.disks_below(row.mounts[0])
    if below and all(luns.get(disk) in included for disk in below):
        return True
    return OS_DISK_LUN in included and bool(row.mount_points & _OS_MOUNT_POINTS)


def _measure(rows: Sequence[_Row], limit_seconds: float) -> dict[str, int]:
    measurement = _Measurement(rows)
    try:
        measurement.start()
    except RuntimeError:
        raise _NotMeasuredError("no thread could be started") from None
    measurement.join(limit_seconds)
    if measurement.is_alive():
        raise _NotMeasuredError(f"`{measurement.under_way}` did not answer within {limit_seconds:g} s")
    if measurement.why:
        raise _NotMeasuredError(measurement.why)
    return measurement.used_bytes


class _Measurement(threading.Thread):
    """Asks one filesystem after another. In a thread, because the call itself has no limit.

    No filesystem should hang: ext4, xfs and vfat answer from memory, even if they are frozen or their disk is
    gone. If one hangs, the result is incomplete anyway, so a thread per filesystem would not help.
    """

    def __init__(self, rows: Sequence[_Row]) -> None:
        super().__init__(name="sizes", daemon=True)
        self._rows = rows
        self.used_bytes: dict[str, int] = {}
        self.under_way = ""
        self.why = ""

    def run(self) -> None:
        try:
            for row in self._rows:
                self.used_bytes[row.device] = self._used_bytes_of(row)
        except Exception as error:  # The waiting thread reports it.
            self.why = f"`{self.under_way}`: {_cause(error)}"

    def _used_bytes_of(self, row: _Row) -> int:
        for mount in row.mounts:
            self.under_way = mount.mount_point
            used_bytes = _used_bytes(mount)
            if used_bytes is not None:
                return used_bytes
        # Unmounted meanwhile. df would have no row for it.
        return 0


def _used_bytes(mount: Mount) -> int | None:
    """Returns how many bytes the filesystem uses, or `None` if it is no longer mounted there.

    Raises:
        OSError: the call failed.
        ValueError: the answer is impossible.
    """
    try:
        descriptor = os.open(mount.mount_point, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # If the mount has vanished meanwhile, the filesystem below it would count twice.
        device = os.fstat(descriptor).st_dev
        if f"{os.major(device)}:{os.minor(device)}" != mount.device:
            return None
        answer = os.statvfs(descriptor)
    finally:
        os.close(descriptor)
    if answer.f_bfree > answer.f_blocks:
        raise ValueError("it has more free blocks than blocks")
    return (answer.f_blocks - answer.f_bfree) * answer.f_frsize


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _is_on_sd(row: _Row, disks: Disks) -> bool:
    below = disks.disks_below(row.mounts[0])
    return bool(below) and all(disk.startswith("sd") for disk in below)


def _is_share(filesystem_type: str) -> bool:
    return filesystem_type in _SHARE_TYPES or filesystem_type.startswith("fuse.")


def _is_uncounted(filesystem_type: str) -> bool:
    return _is_share(filesystem_type) or filesystem_type in _OTHER_UNCOUNTED_TYPES


def _is_named(row: _Row, only_local: bool) -> bool:
    # Remote as df defines it (gnulib, mountlist.c): `host:path` and `//host/share`.
    source = row.mounts[0].source
    is_remote = ":" in source or source.startswith(("//", "\\\\"))
    return _is_uncounted(row.filesystem_type) and not (only_local and is_remote)


def _billing_type(settings: Settings) -> tuple[Pair, ...]:
    only_os_disk = settings.custom.is_only_os_disk_backup_enabled
    if only_os_disk is None:
        return ()
    return (Pair("billingType", "os disk" if only_os_disk else "none"),)


def _types(key: str, rows: Iterable[_Row]) -> tuple[Pair, ...]:
    types = list(dict.fromkeys(row.filesystem_type for row in rows))
    return (Pair(key, str(types)),) if types else ()


def _kib(key: str, size_bytes: int) -> tuple[Pair, ...]:
    return (Pair(key, str(size_bytes // 1024)),) if size_bytes >= 1024 else ()
