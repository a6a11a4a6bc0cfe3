"""The size of the backup: which filesystems count, and that computing it cannot delay a backup for long."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import require
from tests.handler.machine.fake_machine import IDE_OS, IDE_TEMPORARY, SCSI_DATA, FakeMachine, mounted
from vmsnapshot import Mount
from vmsnapshot.handler.machine import sizes
from vmsnapshot.handler.machine.disks import Disks, is_on_block_device
from vmsnapshot.handler.machine.sizes import Sizes, compute, network_shares
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.wire import Command, CustomSettings, IncludedDisks, Job, Settings

KIB = 1024
ROOT = mounted("8:1", "/")
EFI = mounted("8:15", "/boot/efi", "vfat")
RESOURCE = mounted("8:17", "/mnt")
DATA_0 = mounted("8:33", "/data 0", "xfs")
DATA_1 = mounted("8:48", "/data1", "xfs")


def settings(*luns: int, excluded: bool = False, only_os_disk: bool | None = None) -> Settings:
    return Settings(
        job=Job(),
        command=Command.SNAPSHOT,
        backup_metadata=(),
        snapshot_task_token=Secret(""),
        disks=IncludedDisks(luns=luns, any_disk_excluded=excluded),
        custom=CustomSettings(is_only_os_disk_backup_enabled=only_os_disk),
    )


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    """OS disk sda, resource disk sdb, data disks sdc (LUN 0) and sdd (LUN 1)."""
    machine = FakeMachine(tmp_path)
    machine.scsi_disk("sda", "8:0", IDE_OS, 0)
    machine.partition("sda1", "8:1", of="sda")
    machine.partition("sda15", "8:15", of="sda")
    machine.scsi_disk("sdb", "8:16", IDE_TEMPORARY, 0)
    machine.partition("sdb1", "8:17", of="sdb")
    machine.scsi_disk("sdc", "8:32", SCSI_DATA, 0)
    machine.partition("sdc1", "8:33", of="sdc")
    machine.scsi_disk("sdd", "8:48", SCSI_DATA, 1)
    machine.other_disk("loop0", "7:0")
    return machine


Computation = Callable[..., Sizes]


@pytest.fixture
def compute_with(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Computation:
    """Computes sizes with mounts whose used KiB the test gives. Measuring another mount raises a KeyError."""

    def run(
        used_kib: dict[Mount, int], *others: Mount, job: Settings | None = None, only_local: bool = False
    ) -> Sizes:
        used_bytes = {mount: kib * KIB for mount, kib in used_kib.items()}
        monkeypatch.setattr(sizes, "_used_bytes", used_bytes.__getitem__)
        return compute(job or settings(), [*used_kib, *others], machine.disks(), only_local=only_local)

    return run


def of(outcome: Sizes) -> dict[str, str]:
    return {pair.key: pair.value for pair in outcome.telemetry}


def test_local_filesystems_are_added_up(compute_with: Computation) -> None:
    outcome = compute_with({ROOT: 100, EFI: 7, DATA_0: 1000})
    assert outcome == Sizes(1107 * KIB, False, outcome.telemetry)
    assert of(outcome) == {"totalsdSize": "1107"}


def test_a_device_counts_once_however_often_it_is_mounted(compute_with: Computation) -> None:
    assert (
        compute_with({ROOT: 100}, mounted("8:1", "/srv"), mounted("8:1", "/a")).total_used_bytes == 100 * KIB
    )


def test_a_filesystem_that_another_covers_is_not_asked(compute_with: Computation) -> None:
    # Its mount point leads to the covering filesystem, which would then count twice.
    outside = mounted("8:48", "/a", is_visible=False)
    inside = mounted("8:33", "/a/b", is_visible=False)
    cover = mounted("8:1", "/a")
    assert compute_with({ROOT: 100}, outside, inside, cover).total_used_bytes == 100 * KIB


@pytest.mark.parametrize(
    "share",
    [
        mounted("0:50", "/nfs", "nfs4", source="server:/export"),
        mounted("0:51", "/smb", "cifs", source="//server/share"),
        mounted("0:52", "/sshfs", "fuse.sshfs", source="user@host:/"),
        mounted("8:65", "/windows", "fuseblk", source="/dev/sde1"),
        mounted("0:53", "/merged", "overlay", source="overlay"),
        mounted("0:54", "/tank", "zfs", source="tank"),
        mounted("0:55", "/pool", "btrfs", source="/dev/sdc"),
        mounted("11:0", "/cd", "iso9660", source="/dev/sr0"),
        mounted("0:56", "/host", "9p", source="host"),
        mounted("0:57", "/ceph", "ceph", source="monitor:/"),
    ],
    ids=lambda share: share.filesystem_type,
)
def test_shares_and_what_has_never_counted_are_named_and_not_measured(
    compute_with: Computation, share: Mount
) -> None:
    # Measuring `share` would raise a KeyError.
    outcome = compute_with({ROOT: 100}, share)
    assert (outcome.total_used_bytes, outcome.failed) == (100 * KIB, False)
    assert of(outcome)["networkFSTypeInDf"] == str([share.filesystem_type])


@pytest.mark.parametrize("kind", ["autofs", "proc", "sysfs", "cgroup2", "fusectl", "nsfs", "mqueue"])
def test_what_is_on_no_device_is_neither_named_nor_measured(compute_with: Computation, kind: str) -> None:
    outcome = compute_with({ROOT: 100}, mounted("0:60", "/x", kind))
    assert (outcome.total_used_bytes, of(outcome)) == (100 * KIB, {"totalsdSize": "100"})


def test_remote_filesystems_are_not_named_when_only_local_ones_are_asked_for(
    compute_with: Computation,
) -> None:
    share = mounted("0:50", "/nfs", "nfs4", source="server:/export")
    merged = mounted("0:53", "/merged", "overlay", source="overlay")
    assert of(compute_with({ROOT: 1}, share, merged))["networkFSTypeInDf"] == "['nfs4', 'overlay']"
    assert of(compute_with({ROOT: 1}, share, merged, only_local=True))["networkFSTypeInDf"] == "['overlay']"


def test_temporary_disk_memory_loop_devices_and_gluster_snapshots_are_reported_apart(
    compute_with: Computation,
) -> None:
    outcome = compute_with(
        {
            ROOT: 100,
            RESOURCE: 28,
            mounted("0:25", "/memory", "tmpfs"): 1500,
            mounted("0:6", "/devices", "devtmpfs"): 20,
            mounted("7:0", "/snap/core", "squashfs"): 64,
            mounted("8:33", "/run/gluster/snaps/one", "xfs"): 9,
        },
        job=settings(only_os_disk=False),
    )
    assert outcome.total_used_bytes == 100 * KIB
    assert list(of(outcome).items()) == [
        ("billingType", "none"),
        ("glusterFSSize", "9"),
        ("tempDisksSize", "28"),
        ("ramDisksSize", "1520"),
        ("loopDevicesSize", "64"),
        ("totalsdSize", "100"),
    ]


def test_a_filesystem_of_an_unknown_type_counts_and_is_named(compute_with: Computation) -> None:
    outcome = compute_with({ROOT: 100, mounted("8:48", "/old", "minix"): 5})
    assert outcome.total_used_bytes == 105 * KIB
    assert of(outcome)["unknownFSTypeInDf"] == "['minix']"
    assert of(outcome)["totalUsedunknownFS"] == "5"


def test_only_the_root_filesystem_counts_when_only_the_os_disk_is_backed_up(
    compute_with: Computation,
) -> None:
    outcome = compute_with({ROOT: 100}, EFI, RESOURCE, DATA_0, job=settings(-1, only_os_disk=True))
    assert outcome.total_used_bytes == 100 * KIB
    assert of(outcome)["billingType"] == "os disk"


def test_all_disks_count_when_none_is_excluded(compute_with: Computation) -> None:
    assert compute_with({ROOT: 1, DATA_0: 2, DATA_1: 4}, job=settings(0)).total_used_bytes == 7 * KIB


def test_only_included_disks_count_when_one_is_excluded(compute_with: Computation) -> None:
    assert (
        compute_with({DATA_1: 4}, ROOT, EFI, DATA_0, job=settings(1, excluded=True)).total_used_bytes
        == 4 * KIB
    )
    with_os_disk = compute_with({ROOT: 1, EFI: 2, DATA_1: 4}, DATA_0, job=settings(1, -1, excluded=True))
    assert with_os_disk.total_used_bytes == 7 * KIB


def test_a_logical_volume_counts_only_when_all_its_disks_are_included(
    machine: FakeMachine, compute_with: Computation
) -> None:
    machine.stack("dm-0", "252:0", on=["sdc1", "sdd"])
    volume = mounted("252:0", "/lv", "xfs")
    assert compute_with({ROOT: 1}, volume, job=settings(0, -1, excluded=True)).total_used_bytes == KIB
    both = compute_with({ROOT: 1, volume: 8}, job=settings(0, 1, -1, excluded=True))
    assert both.total_used_bytes == 9 * KIB


@pytest.mark.parametrize("mount_point", ["/", "/boot/efi"])
def test_the_systems_own_filesystems_count_with_the_os_disk_though_they_reach_to_an_excluded_one(
    machine: FakeMachine, compute_with: Computation, mount_point: str
) -> None:
    machine.stack("dm-0", "252:0", on=["sda15", "sdd"])
    own = mounted("252:0", mount_point, "vfat")
    assert compute_with({own: 3}, DATA_0, job=settings(-1, excluded=True)).total_used_bytes == 3 * KIB
    assert compute_with({}, own, DATA_0, job=settings(7, excluded=True)).total_used_bytes == 0


def test_everything_counts_and_the_size_is_marked_failed_when_no_lun_can_be_told(
    no_disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_used_bytes", {ROOT: KIB, DATA_0: 2 * KIB}.__getitem__)
    outcome = compute(settings(0, excluded=True), [ROOT, DATA_0], no_disks, only_local=False)
    assert (outcome.total_used_bytes, outcome.failed) == (3 * KIB, True)
    assert "LUN" in outcome.why


def test_more_than_a_tebibyte_a_disk_counts_in_full(compute_with: Computation) -> None:
    assert compute_with({DATA_0: 5 * 1024**3}, job=settings(0)).total_used_bytes == 5 * 1024**4


def test_presence_of_shares_depends_on_all_mounts() -> None:
    assert network_shares([ROOT, mounted("0:53", "/merged", "overlay")]) == ()
    assert network_shares([ROOT, mounted("0:61", "/sys/fs/fuse/connections", "fusectl")]) == ()
    assert network_shares([ROOT, mounted("0:52", "/sshfs", "fuse.sshfs")]) == (
        ("networkFSTypePresentInMount", "True"),
    )


# Real filesystems.


def mount_of(directory: Path, filesystem_type: str = "ext4") -> Mount:
    device = directory.stat().st_dev
    return mounted(f"{os.major(device)}:{os.minor(device)}", str(directory), filesystem_type)


@pytest.fixture
def real(tmp_path: Path) -> Mount:
    """A directory of the test, as if it were the mount point of its filesystem."""
    directory = tmp_path / "a mount point"
    directory.mkdir()
    mount = mount_of(directory)
    require(is_on_block_device(mount), "needs a temporary directory on a block device")
    return mount


@pytest.fixture
def no_disks(tmp_path: Path) -> Disks:
    return FakeMachine(tmp_path / "none").disks()


def test_used_is_what_the_kernel_says_of_the_filesystem(real: Mount, no_disks: Disks) -> None:
    before = shutil.disk_usage(real.mount_point).used
    outcome = compute(settings(), [real], no_disks, only_local=False)
    after = shutil.disk_usage(real.mount_point).used
    # Other programs may write to the same disk meanwhile.
    leeway_bytes = 256 * 1024**2
    assert min(before, after) - leeway_bytes < outcome.total_used_bytes < max(before, after) + leeway_bytes
    assert (outcome.failed, outcome.why) == (False, "")


def test_a_mount_that_is_gone_is_not_counted_as_what_is_below_it(tmp_path: Path, no_disks: Disks) -> None:
    unmounted = mounted("8:250", str(tmp_path))
    removed = mounted("8:251", str(tmp_path / "removed"))
    outcome = compute(settings(), [unmounted, removed], no_disks, only_local=False)
    assert (outcome.total_used_bytes, outcome.failed) == (0, False)


def test_a_filesystem_that_hangs_ends_the_computation_at_its_limit(
    real: Mount, no_disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda _: released.wait(30))
    started = time.monotonic()
    try:
        outcome = compute(settings(only_os_disk=False), [real], no_disks, only_local=False, limit_seconds=0.1)
    finally:
        held_up = [thread for thread in threading.enumerate() if thread.name == "sizes"]
        released.set()
        for thread in held_up:
            thread.join(10)
    assert time.monotonic() - started < 10
    assert held_up, "nothing was held up"
    assert (outcome.total_used_bytes, outcome.failed) == (0, True)
    assert real.mount_point in outcome.why

    assert of(outcome) == {"billingType": "none"}


@pytest.mark.parametrize("blocks", [(10, 11, 512), None])
def test_an_answer_that_cannot_be_and_an_error_mark_the_size_as_failed(
    real: Mount, no_disks: Disks, monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int, int] | None
) -> None:
    def statvfs(_: int) -> os.statvfs_result:
        if blocks is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        total, free, fragment_size = blocks
        return os.statvfs_result((4096, fragment_size, total, free, free, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    outcome = compute(settings(), [real], no_disks, only_local=False)
    assert (outcome.total_used_bytes, outcome.failed) == (0, True)
    assert real.mount_point in outcome.why


def test_used_counts_reserved_blocks_as_free_and_in_units_of_fragments(
    real: Mount, no_disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = os.statvfs_result((4096, 1024, 100, 40, 35, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: answer)
    assert compute(settings(), [real], no_disks, only_local=False).total_used_bytes == 60 * 1024
