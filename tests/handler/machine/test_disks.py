"""Temporary disks and LUNs, on trees like the sysfs of Azure's VMs and on the sysfs of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import vmsnapshot
from tests.handler.machine.fake_machine import (
    IDE_OS,
    IDE_TEMPORARY,
    LOCAL_NVME,
    REMOTE_NVME,
    SCSI_DATA,
    SCSI_SYSTEM,
    FakeMachine,
    mounted,
)
from vmsnapshot.handler.machine.disks import Disks, is_on_block_device, partition_count

ROOT = mounted("8:1", "/")


def temporary(machine: FakeMachine) -> set[str]:
    """The devices that are on temporary disks only."""
    disks = machine.disks()
    return {number for number in machine.numbers() if disks.is_on_resource_disk(mounted(number, "/x"))}


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


@pytest.fixture
def generation_1(machine: FakeMachine) -> FakeMachine:
    machine.scsi_disk("sda", "8:0", IDE_OS, 0)
    machine.partition("sda1", "8:1", of="sda")
    machine.scsi_disk("sdb", "8:16", IDE_TEMPORARY, 0)
    machine.partition("sdb1", "8:17", of="sdb")
    machine.scsi_disk("sdc", "8:32", SCSI_DATA, 0)
    machine.scsi_disk("sdd", "8:48", SCSI_DATA, 3)
    return machine


@pytest.fixture
def generation_2(machine: FakeMachine) -> FakeMachine:
    # The kernel may find the disks in any order, so their names do not say what they are for.
    machine.scsi_disk("sda", "8:0", SCSI_SYSTEM, 1)
    machine.partition("sda1", "8:1", of="sda")
    machine.scsi_disk("sdb", "8:16", SCSI_SYSTEM, 0)
    machine.partition("sdb1", "8:17", of="sdb")
    machine.partition("sdb15", "8:31", of="sdb")
    machine.scsi_disk("sr0", "11:0", SCSI_SYSTEM, 2)
    machine.scsi_disk("sdc", "8:32", SCSI_DATA, 1)
    return machine


def test_generation_1_has_its_resource_disk_on_the_second_ide_controller(generation_1: FakeMachine) -> None:
    assert temporary(generation_1) == {"8:16", "8:17"}


def test_generation_1_has_its_luns_by_controller(generation_1: FakeMachine) -> None:
    assert generation_1.disks().luns_by_disk([ROOT]) == {"sda": -1, "sdc": 0, "sdd": 3}


def test_generation_2_has_its_resource_disk_at_unit_1_of_the_system_controller(
    generation_2: FakeMachine,
) -> None:
    assert temporary(generation_2) == {"8:0", "8:1"}


def test_generation_2_has_a_data_disk_at_unit_1_of_the_data_controller(generation_2: FakeMachine) -> None:
    assert generation_2.disks().luns_by_disk([mounted("8:17", "/")]) == {"sdb": -1, "sdc": 1}


@pytest.mark.parametrize("letter", "bcd")
def test_each_data_controller_counts(machine: FakeMachine, letter: str) -> None:
    machine.scsi_disk("sdq", "65:0", f"f8b3781{letter}-1e82-4818-a1c3-63d806ec15bb", 40)
    machine.scsi_disk("sda", "8:0", IDE_OS, 0)
    assert machine.disks().luns_by_disk([]) == {"sda": -1, "sdq": 40}


def test_remote_nvme_disks_have_luns_by_their_namespace(machine: FakeMachine) -> None:
    machine.nvme_disk("nvme0n1", "259:0", REMOTE_NVME, 1)
    machine.partition("nvme0n1p1", "259:1", of="nvme0n1")
    machine.nvme_disk("nvme0n2", "259:2", REMOTE_NVME, 2)
    machine.nvme_disk("nvme0n12", "259:3", REMOTE_NVME, 12)
    disks = machine.disks()
    assert disks.luns_by_disk([mounted("259:1", "/")]) == {"nvme0n1": -1, "nvme0n2": 0, "nvme0n12": 10}
    assert disks.disks_of("259:1") == {"nvme0n1"}
    assert temporary(machine) == set()


def test_local_nvme_disks_are_temporary(machine: FakeMachine) -> None:
    machine.nvme_disk("nvme0n1", "259:0", REMOTE_NVME, 1)
    machine.nvme_disk("nvme1n1", "259:5", LOCAL_NVME, 1)
    machine.partition("nvme1n1p1", "259:6", of="nvme1n1")
    machine.nvme_disk("nvme2n1", "259:7", "Microsoft NVMe Direct Disk", 1)
    machine.stack("md127", "9:127", on=["nvme1n1p1", "nvme2n1"])
    disks = machine.disks()
    assert temporary(machine) == {"259:5", "259:6", "259:7", "9:127"}
    assert disks.luns_by_disk([]) == {"nvme0n1": -1}


def test_a_data_volume_with_its_cache_on_the_resource_disk_is_not_temporary(
    generation_1: FakeMachine,
) -> None:
    generation_1.stack("dm-0", "252:0", on=["sdc", "sdb1"])
    assert temporary(generation_1) == {"8:16", "8:17"}


@pytest.mark.parametrize("link", ["disk/azure/resource", "disk/cloud/azure_resource"])
def test_a_link_of_udev_names_the_resource_disk(machine: FakeMachine, link: str) -> None:
    machine.other_disk("vda", "254:0")
    machine.other_disk("vdb", "254:16")
    machine.partition("vdb1", "254:17", of="vdb")
    (machine.dev / "vdb").touch()
    (machine.dev / link).parent.mkdir(parents=True)
    (machine.dev / link).symlink_to("../../vdb")
    assert temporary(machine) == {"254:16", "254:17"}


def test_a_disk_with_a_longer_name_is_another_disk(machine: FakeMachine) -> None:
    machine.scsi_disk("sda", "8:0", IDE_TEMPORARY, 0)
    machine.scsi_disk("sdaa", "65:160", SCSI_DATA, 5)
    machine.partition("sdaa1", "65:161", of="sdaa")
    disks = machine.disks()
    assert temporary(machine) == {"8:0"}
    assert disks.disks_of("65:161") == {"sdaa"}


def test_a_logical_volume_lies_on_all_its_physical_volumes(generation_1: FakeMachine) -> None:
    generation_1.partition("sdc1", "8:33", of="sdc")
    generation_1.stack("dm-0", "252:0", on=["sdc1", "sdd"])
    generation_1.stack("dm-1", "252:1", on=["dm-0"])
    disks = generation_1.disks()
    assert disks.disks_of("252:1") == {"sdc", "sdd"}
    assert disks.disks_below(mounted("252:1", "/data")) == {"sdc", "sdd"}


def test_the_disk_of_a_root_volume_group_stays_a_data_disk(generation_1: FakeMachine) -> None:
    generation_1.stack("dm-0", "252:0", on=["sda1", "sdd"])
    luns = generation_1.disks().luns_by_disk([mounted("252:0", "/", "xfs")])
    assert luns == {"sda": -1, "sdc": 0, "sdd": 3}


def test_a_disk_of_an_unknown_controller_has_no_lun_beside_known_ones(generation_1: FakeMachine) -> None:
    generation_1.scsi_disk("sde", "8:64", None, 3)
    assert "sde" not in generation_1.disks().luns_by_disk([ROOT])


def test_the_scsi_address_gives_the_lun_where_no_controller_is_known(machine: FakeMachine) -> None:
    machine.scsi_disk("sda", "8:0", None, 0)
    machine.partition("sda1", "8:1", of="sda")
    machine.scsi_disk("sdb", "8:16", None, 7)
    machine.other_disk("loop0", "7:0")
    assert machine.disks().luns_by_disk([ROOT]) == {"sda": -1, "sdb": 7}


def test_a_btrfs_lies_on_all_its_devices(generation_1: FakeMachine) -> None:
    generation_1.stack("dm-0", "252:0", on=["sdc"])
    mount = mounted("0:44", "/data", "btrfs", on=["252:0", "8:48"])
    assert generation_1.disks().disks_below(mount) == {"sdc", "sdd"}


def test_a_btrfs_on_the_resource_disk_is_known_as_such(generation_1: FakeMachine) -> None:
    disks = generation_1.disks()
    assert disks.is_on_resource_disk(mounted("0:44", "/mnt", "btrfs", on=["8:17"]))
    assert not disks.is_on_resource_disk(mounted("0:45", "/data", "btrfs", on=["8:32"]))
    assert not disks.is_on_resource_disk(mounted("0:46", "/x", "btrfs", on=["8:17", "8:32"]))


def test_a_fuseblk_lies_on_its_disk_although_the_engine_says_on_none(generation_1: FakeMachine) -> None:
    windows = mounted("8:17", "/windows", "fuseblk", source="/dev/sdb1")
    assert list(windows.block_devices) == []
    assert is_on_block_device(windows)
    assert generation_1.disks().is_on_resource_disk(windows)
    assert not is_on_block_device(mounted("0:52", "/sshfs", "fuse.sshfs", source="user@host:/"))


def test_partition_count_is_three_for_root_efi_and_resource_disk() -> None:
    # The contract's worked example, with a bind mount, pseudo filesystems and a network share added.
    mounts = [
        mounted("0:21", "/proc", "proc"),
        mounted("0:6", "/dev", "devtmpfs"),
        ROOT,
        mounted("8:15", "/boot/efi", "vfat"),
        mounted("8:17", "/mnt"),
        mounted("8:1", "/srv/home"),
        mounted("0:50", "/share", "nfs4", source="server:/export"),
    ]
    assert partition_count(mounts) == 3


def test_partition_count_counts_the_subvolumes_of_a_btrfs_once() -> None:
    subvolumes = [mounted("0:40", mount_point, "btrfs", on=["8:32"]) for mount_point in ("/a", "/b")]
    assert partition_count(subvolumes) == 1


def test_partition_count_counts_a_fuseblk() -> None:
    assert partition_count([ROOT, mounted("8:65", "/windows", "fuseblk", source="/dev/sde1")]) == 2


def test_encryption_on_a_loop_device_lies_on_the_loop_device(machine: FakeMachine) -> None:
    machine.other_disk("loop3", "7:3")
    machine.partition("loop3p1", "259:9", of="loop3")
    machine.stack("dm-0", "252:0", on=["loop3p1"])
    machine.other_disk("vda", "254:0")
    disks = machine.disks()
    assert disks.is_on_loop_device(mounted("252:0", "/vault"))
    assert not disks.is_on_loop_device(mounted("254:0", "/"))
    assert not disks.is_on_loop_device(mounted("0:30", "/run", "tmpfs"))


def test_devices_that_lie_on_each_other_end_the_search(machine: FakeMachine) -> None:
    machine.stack("dm-0", "252:0", on=["dm-1"])
    machine.stack("dm-1", "252:1", on=["dm-0"])
    machine.partition("dm-2", "252:2", of="dm-1")
    assert machine.disks().disks_of("252:2") == frozenset()


def test_without_block_devices_there_are_no_disks(machine: FakeMachine) -> None:
    disks = machine.disks()
    assert not disks.is_on_resource_disk(ROOT)
    assert disks.luns_by_disk([ROOT]) == {}
    assert disks.disks_of("8:1") == frozenset()


def test_this_machines_mounts_all_lie_on_disks_of_its_sysfs(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    this_machine = vmsnapshot.machine()
    disks = Disks(this_machine)
    mounts = [mount for mount in this_machine.mounts if is_on_block_device(mount)]
    assert all(disks.disks_below(mount) for mount in mounts)
    names = {name for mount in mounts for name in disks.disks_below(mount)}
    assert all(Path("/sys/block", name).is_dir() for name in names)
    assert bool(names) == bool(partition_count(mounts))
