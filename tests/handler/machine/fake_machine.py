"""A machine as the engine describes it, with a tree like sysfs in a directory of the test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnapshot import Machine, Mount
from vmsnapshot.handler.machine.disks import Disks

IDE_OS = "00000000-0000-8899-0000-000000000000"
IDE_TEMPORARY = "00000000-0001-8899-0000-000000000000"
SCSI_SYSTEM = "f8b3781a-1e82-4818-a1c3-63d806ec15bb"
SCSI_DATA = "f8b3781b-1e82-4818-a1c3-63d806ec15bb"
REMOTE_NVME = "MSFT NVMe Accelerator v1.0"
LOCAL_NVME = "Microsoft NVMe Direct Disk v2"


@dataclass(frozen=True)
class FakeMount:
    """The attributes of `vmsnapshot.Mount` that the handler reads. It is hashable, to be a key of a dict."""

    device: str
    mount_point: str
    filesystem_type: str
    source: str
    is_visible: bool
    is_on_local_block_device: bool
    block_devices: tuple[str, ...]


@dataclass(frozen=True)
class FakeBlockDevice:
    """The attributes of `vmsnapshot.BlockDevice` that the handler reads."""

    number: str
    directory: str
    parents: list[str]


@dataclass(frozen=True)
class FakeTables:
    """The attributes of `vmsnapshot.Machine` that the handler reads."""

    mounts: list[Mount]
    block_devices: list[FakeBlockDevice]


class FakeMachine:
    """Makes devices. `read` returns them as the engine does, and `disks` classifies them as on Azure."""

    def __init__(self, directory: Path) -> None:
        self._sys = directory / "sys"
        self.dev = directory / "dev"
        self.dev.mkdir(parents=True)
        self._directories: dict[str, Path] = {}
        self._numbers: dict[str, str] = {}
        self._parents: dict[str, list[str]] = {}

    def read(self, *mounts: Mount) -> Machine:
        devices = [
            FakeBlockDevice(
                number,
                str(self._directories[name]),
                [self._numbers[parent] for parent in self._parents[name]],
            )
            for name, number in self._numbers.items()
        ]
        machine: Any = FakeTables(list(mounts), devices)
        return machine  # type: ignore[no-any-return]

    def disks(self) -> Disks:
        return Disks(self.read(), self.dev)

    def numbers(self) -> list[str]:
        """The numbers of all devices that were made."""
        return list(self._numbers.values())

    def scsi_disk(self, name: str, number: str, controller: str | None, unit: int) -> None:
        """A disk on a VMBus device, or on an iSCSI session if `controller` is `None`."""
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
        """An NVMe namespace. `name` begins with the name of its controller."""
        controller = self._sys / "devices/pci0000:00/nvme" / name.rpartition("n")[0]
        self._add(name, number, controller / name)
        (controller / "model").write_text(f"{model:<40}\n")
        (controller / name / "device").symlink_to(f"../../{controller.name}")
        (controller / name / "nsid").write_text(f"{namespace}\n")

    def other_disk(self, name: str, number: str) -> None:
        """A disk without a SCSI address, such as virtio's or a loop device."""
        self._add(name, number, self._sys / "devices/virtual/block" / name)

    def partition(self, name: str, number: str, *, of: str) -> None:
        self._add(name, number, self._directories[of] / name, parents=[of])

    def stack(self, name: str, number: str, *, on: Iterable[str]) -> None:
        """A device of dm, md or bcache."""
        self._add(name, number, self._sys / "devices/virtual/block" / name, parents=list(on))

    def _add(self, name: str, number: str, directory: Path, parents: list[str] | None = None) -> None:
        directory.mkdir(parents=True)
        self._directories[name] = directory
        self._numbers[name] = number
        self._parents[name] = parents or []


def mounted(
    device: str,
    mount_point: str,
    filesystem_type: str = "ext4",
    *,
    source: str = "",
    on: Iterable[str] = (),
    is_visible: bool = True,
) -> Mount:
    """A mount as the engine describes it. `on` are its devices, for btrfs and bcachefs."""
    can_span = filesystem_type in ("btrfs", "bcachefs")
    is_local = not filesystem_type.startswith("fuse") and (can_span or not device.startswith("0:"))
    block_devices = tuple(on) if can_span else (device,) * is_local
    mount: Any = FakeMount(
        device,
        mount_point,
        filesystem_type,
        source or f"/dev/{device}",
        is_visible,
        is_local,
        block_devices,
    )
    return mount  # type: ignore[no-any-return]
