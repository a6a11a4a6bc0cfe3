"""A machine's block devices: a tree of sysfs below a directory of the test, laid out as the kernel's is."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from vmsnapshot.handler.machine.disks import Disks
from vmsnapshot.mounts import Mount

IDE_OS = "00000000-0000-8899-0000-000000000000"
IDE_TEMPORARY = "00000000-0001-8899-0000-000000000000"
SCSI_SYSTEM = "f8b3781a-1e82-4818-a1c3-63d806ec15bb"
SCSI_DATA = "f8b3781b-1e82-4818-a1c3-63d806ec15bb"
REMOTE_NVME = "MSFT NVMe Accelerator v1.0"
LOCAL_NVME = "Microsoft NVMe Direct Disk v2"


class FakeMachine:
    """Makes devices; `disks` reads what was made."""

    def __init__(self, directory: Path) -> None:
        self._sys = directory / "sys"
        self.dev = directory / "dev"
        (self._sys / "dev/block").mkdir(parents=True)
        self.dev.mkdir()
        self._directories: dict[str, Path] = {}

    def disks(self) -> Disks:
        return Disks(self._sys, self.dev)

    def numbers(self) -> list[str]:
        """The numbers of all devices that were made."""
        return [entry.name for entry in (self._sys / "dev/block").iterdir()]

    def scsi_disk(self, name: str, number: str, controller: str | None, unit: int) -> None:
        """A disk on a VMBus device, or on an iSCSI session when `controller` is none."""
        host = len(self._directories)
        address = f"{host}:0:0:{unit}"
        bus = self._sys / "devices" / (f"VMBUS:01/{controller}" if controller else "platform/session1")
        bus.mkdir(parents=True, exist_ok=True)
        if controller:
            (bus / "device_id").write_text(f"{{{controller}}}\n")
        directory = bus / f"host{host}/target{host}:0:0/{address}/block/{name}"
        self._add(name, number, directory)
        (directory / "device").symlink_to(f"../../../{address}")

    def nvme_disk(self, name: str, number: str, model: str, namespace: int) -> None:
        """A namespace of the controller that `name` begins with."""
        controller = self._sys / "devices/pci0000:00/nvme" / name.rpartition("n")[0]
        self._add(name, number, controller / name)
        (controller / "model").write_text(f"{model:<40}\n")
        (controller / name / "device").symlink_to(f"../../{controller.name}")
        (controller / name / "nsid").write_text(f"{namespace}\n")

    def other_disk(self, name: str, number: str) -> None:
        """A disk without a SCSI address, such as virtio's or a loop device."""
        self._add(name, number, self._sys / "devices/virtual/block" / name)

    def partition(self, name: str, number: str, *, of: str) -> None:
        directory = self._directories[of] / name
        self._add(name, number, directory)
        (directory / "slaves").rmdir()
        (directory / "partition").write_text("1\n")

    def stack(self, name: str, number: str, *, on: Iterable[str], mapped: str = "") -> None:
        """A device of dm, md or bcache; `mapped` is dm's own name for it."""
        directory = self._sys / "devices/virtual/block" / name
        self._add(name, number, directory)
        for lower in on:
            (directory / "slaves" / lower).symlink_to(self._directories[lower])
        if mapped:
            (directory / "dm").mkdir()
            (directory / "dm/name").write_text(f"{mapped}\n")

    def btrfs(self, identity: str, *, on: Iterable[str]) -> None:
        """A mounted btrfs with the devices `on`."""
        devices = self._sys / "fs/btrfs" / identity / "devices"
        devices.mkdir(parents=True)
        for member in on:
            (devices / member).symlink_to(self._directories[member])

    def _add(self, name: str, number: str, directory: Path) -> None:
        (directory / "slaves").mkdir(parents=True)
        (self._sys / "dev/block" / number).symlink_to(directory)
        self._directories[name] = directory


def mounted(device: str, mount_point: str, filesystem_type: str = "ext4", *, source: str = "") -> Mount:
    """A mount on ``/``, or that of ``/``."""
    mount_id, parent_id = (
        (2, 1) if mount_point == "/" else (zlib.crc32(f"{device} {mount_point}".encode()) + 3, 2)
    )
    return Mount(
        mount_id, parent_id, device, mount_point, "rw,relatime", filesystem_type, source or f"/dev/{device}"
    )
