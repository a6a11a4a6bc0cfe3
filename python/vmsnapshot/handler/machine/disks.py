"""The VM's block devices, from sysfs: the disks below a mount, their LUNs, and whether they are temporary.

This module reads sysfs and two symbolic links of udev. It starts no program and opens no device. It ignores
what cannot be read, because a device can vanish at any moment.

The udev rules of the agent (66-azure-storage.rules) and of azure-vm-utils (80-azure-disk.rules,
doc/disk-identification.md) document how Azure attaches disks. Devices are compared by number, never by a part
of their name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot.handler.settings.wire import OS_DISK_LUN
from vmsnapshot.mounts import Mount, visible

# In a generation 1 VM, the OS disk and the temporary disk are on two emulated IDE controllers.
_IDE_OS = "00000000-0000-"
_IDE_TEMPORARY = "00000000-0001-"
# In a generation 2 VM, both are on one SCSI controller. The CD-ROM is the third unit.
_SCSI_SYSTEM = "f8b3781a-1e82-4818-a1c3-63d806ec15bb"
_SYSTEM_OS_UNIT = 0
_SYSTEM_TEMPORARY_UNIT = 1
# Data disks are on other SCSI controllers. Their logical unit is the LUN that the customer chose.
_SCSI_DATA = frozenset(f"f8b3781{letter}-1e82-4818-a1c3-63d806ec15bb" for letter in "bcd")

_REMOTE_NVME = "MSFT NVMe Accelerator v1.0"
_NVME_OS_NAMESPACE = 1
_NVME_FIRST_DATA_NAMESPACE = 2
_LOCAL_NVME = frozenset({"Microsoft NVMe Direct Disk", "Microsoft NVMe Direct Disk v2"})

# From the udev rules of the agent or azure-vm-utils, and from those of cloud-init.
_TEMPORARY_LINKS = ("disk/azure/resource", "disk/cloud/azure_resource")

_SCSI_ADDRESS = re.compile(r"\d+:\d+:\d+:(\d+)")
# Linux, Documentation/admin-guide/devices.txt.
_LOOP_MAJOR = "7:"


@dataclass(frozen=True)
class _BlockDevice:
    number: str
    name: str
    directory: Path
    below: tuple[str, ...]
    """The names of the devices below: the disk of a partition, the slaves of dm, md and bcache."""


class Disks:
    """The block devices at the time of construction."""

    def __init__(self, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        """Reads sysfs. Without sysfs there are no devices."""
        self._sys = sys.resolve()
        self._devices = {device.number: device for device in _block_devices(self._sys)}
        self._numbers = {device.name: device.number for device in self._devices.values()}
        self._btrfs = [
            frozenset(
                self._numbers[name] for name in _names_in(directory / "devices") if name in self._numbers
            )
            for directory in _entries_of(self._sys / "fs/btrfs")
        ]
        linked = {(dev / link).resolve().name for link in _TEMPORARY_LINKS if (dev / link).is_symlink()}
        temporary = {self._numbers[name] for name in linked if name in self._numbers}
        temporary.update(disk.number for disk in self._whole_disks() if self._is_temporary(disk))
        self._temporary = frozenset().union(*(self._lowest(number) for number in temporary))

    def is_on_resource_disk(self, mount: Mount) -> bool:
        """Returns whether `mount` lies on temporary disks only.

        A volume on a temporary disk and another disk, such as a data disk with a local cache, contains data
        that is backed up. It does not count.
        """
        lowest = self._lowest_of_all(self.devices_of(mount))
        return bool(lowest) and lowest <= self._temporary

    def is_on_loop_device(self, mount: Mount) -> bool:
        """Returns whether `mount` lies on loop devices only, also through partitions, LVM and encryption."""
        lowest = self._lowest_of_all(self.devices_of(mount))
        return bool(lowest) and all(number.startswith(_LOOP_MAJOR) for number in lowest)

    def devices_of(self, mount: Mount) -> frozenset[str]:
        """Returns the numbers of the block devices directly below `mount`."""
        if not mount.is_on_block_device:
            return frozenset()
        if not mount.device.startswith("0:"):
            return frozenset({mount.device})
        # The source of a bcachefs mount lists all its devices. That of a btrfs mount is one of them.
        named = frozenset(
            device.number
            for device in self._devices.values()
            if _paths_of(device) & set(mount.source.split(":"))
        )
        if mount.filesystem_type != "btrfs":
            return named
        # A source that names no known device (`/dev/root`) may be any btrfs.
        return named.union(*(members for members in self._btrfs if not named or members & named))

    def disks_of(self, device: str) -> frozenset[str]:
        """Returns the names of the disks below `device`, a major:minor. LVM has one per physical volume."""
        return frozenset(
            self._devices[number].name for number in self._lowest(device) if number in self._devices
        )

    def disks_below(self, mount: Mount) -> frozenset[str]:
        """Returns the names of all disks below `mount`."""
        return frozenset().union(*(self.disks_of(device) for device in self.devices_of(mount)))

    def luns_by_disk(self, mounts: Sequence[Mount]) -> dict[str, int]:
        """Returns the LUN of each disk that has one, by its name. The OS disk has `OS_DISK_LUN`.

        The controller of a disk decides. If no controller is one of Azure's, the last number of the SCSI
        address counts as the LUN, and the disk below ``/`` as the OS disk. LUNs of known controllers and of
        others are never mixed.
        """
        roots = [mount for mount in visible(mounts) if mount.mount_point == "/"]
        under_root = frozenset().union(*(self.disks_below(mount) for mount in roots))
        disks = list(self._whole_disks())
        luns = {disk.name: lun for disk in disks if (lun := self._azure_lun(disk)) is not None}
        if luns:
            # The OS disk may be on an unknown kind of controller. A data disk that belongs to the root volume
            # group stays a data disk.
            return {**dict.fromkeys(under_root, OS_DISK_LUN), **luns}
        luns = {disk.name: unit for disk in disks if (unit := _scsi_unit(disk)) is not None}
        return {**luns, **dict.fromkeys(under_root, OS_DISK_LUN)}

    def _whole_disks(self) -> Iterator[_BlockDevice]:
        return (device for device in self._devices.values() if not device.below)

    def _lowest(self, number: str) -> frozenset[str]:
        # The lowest devices. An unknown device counts as one of them.
        lowest, seen, waiting = set(), set(), [number]
        while waiting:
            current = waiting.pop()
            if current in seen:
                continue
            seen.add(current)
            device = self._devices.get(current)
            below = [self._numbers[name] for name in device.below if name in self._numbers] if device else []
            waiting.extend(below)
            if not below:
                lowest.add(current)
        return frozenset(lowest)

    def _lowest_of_all(self, numbers: frozenset[str]) -> frozenset[str]:
        return frozenset().union(*(self._lowest(number) for number in numbers))

    def _is_temporary(self, disk: _BlockDevice) -> bool:
        if _model(disk) in _LOCAL_NVME:
            return True
        unit = _scsi_unit(disk)
        controller = self._controller(disk) if unit is not None else ""
        return controller.startswith(_IDE_TEMPORARY) or (
            controller == _SCSI_SYSTEM and unit == _SYSTEM_TEMPORARY_UNIT
        )

    def _azure_lun(self, disk: _BlockDevice) -> int | None:
        if _model(disk) == _REMOTE_NVME:
            namespace = _number(disk.directory / "nsid")
            if namespace is None:
                return None
            return OS_DISK_LUN if namespace == _NVME_OS_NAMESPACE else namespace - _NVME_FIRST_DATA_NAMESPACE
        unit = _scsi_unit(disk)
        controller = self._controller(disk) if unit is not None else ""
        if controller in _SCSI_DATA:
            return unit
        is_os = controller.startswith(_IDE_OS) or (controller == _SCSI_SYSTEM and unit == _SYSTEM_OS_UNIT)
        return OS_DISK_LUN if is_os else None

    def _controller(self, disk: _BlockDevice) -> str:
        # The VMBus device above the disk. The SCSI layer may have several levels in between.
        for directory in disk.directory.parents:
            if directory == self._sys:
                break
            text = _text(directory / "device_id")
            if text:
                return text.strip("{}").lower()
        return ""


def _block_devices(sys: Path) -> Iterator[_BlockDevice]:
    for link in _entries_of(sys / "dev/block"):
        directory = link.resolve()
        is_partition = (directory / "partition").exists()
        below = (directory.parent.name,) if is_partition else _names_in(directory / "slaves")
        yield _BlockDevice(number=link.name, name=directory.name, directory=directory, below=below)


def _paths_of(device: _BlockDevice) -> set[str]:
    mapped = _text(device.directory / "dm/name")
    return {f"/dev/{device.name}", f"/dev/mapper/{mapped}"} if mapped else {f"/dev/{device.name}"}


def _scsi_unit(disk: _BlockDevice) -> int | None:
    with suppress(OSError):
        # host:channel:target:unit
        match = _SCSI_ADDRESS.fullmatch((disk.directory / "device").readlink().name)
        return int(match[1]) if match else None
    return None


def _model(disk: _BlockDevice) -> str:
    return _text(disk.directory / "device/model")


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _entries_of(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(directory.iterdir())
    return []


def _names_in(directory: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in _entries_of(directory))
