"""A ledger that a killed run left, and a freeze that is not the run's: `thaw` leaves that one alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.runs import leave_frozen
from tests.support import freezing
from tests.support.command import run_command
from tests.support.filesystems import ScratchFilesystems
from tests.support.processes import run_bounded


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_thaw_leaves_alone_what_was_written_since_and_another_program_has_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, kind: str
) -> None:
    mount_point = scratch.make_on_loop("left", kind).mount_point
    rescue([mount_point])
    leave_frozen(mount_point, fault_server())
    freezing.thaw(mount_point)
    (mount_point / "written").write_bytes(b"x" * 100_000)
    with freezing.frozen(mount_point):
        thaw = run_command("thaw", "--json")
        assert freezing.is_frozen(mount_point)
    assert (thaw.status, thaw.document["thawed"], thaw.document["failed"]) == (1, [], [])
    (left,) = thaw.document["left_alone"]
    assert left["mount_point"] == str(mount_point)
    assert "fsfreeze --unfreeze" in left["why"]
    # It is settled: the next run does not have to wait for it.
    assert run_command("status").status == 0
    assert run_command("thaw", "--json").document["left_alone"] == []


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_thaw_thaws_what_was_only_read_since(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, kind: str
) -> None:
    mount_point = scratch.make_on_loop("left", kind).mount_point
    (mount_point / "before").write_bytes(b"x" * 5_000_000)
    rescue([mount_point])
    leave_frozen(mount_point, fault_server())
    assert (mount_point / "before").read_bytes()
    thaw = run_command("thaw", "--json")
    assert (thaw.status, len(thaw.document["thawed"])) == (0, 1)
    assert not freezing.is_frozen(mount_point)


def test_thaw_leaves_another_disk_alone_that_got_the_same_number(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("left", "xfs")
    mount_point, device = filesystem.mount_point, filesystem.device
    armed = rescue([mount_point])
    leave_frozen(mount_point, fault_server())
    freezing.thaw(mount_point)
    armed.cancel()
    run_bounded(["umount", mount_point])
    run_bounded(["losetup", "--detach", device])
    image = scratch.directory / "other.img"
    with image.open("xb") as file:
        file.truncate(64 * 1024 * 1024)
    run_bounded(["mkfs.ext4", "-q", "-F", image])
    run_bounded(["losetup", device, image])
    subprocess.run(["mount", device, mount_point], check=True, timeout=10)
    rescue([mount_point])
    with freezing.frozen(mount_point):
        thaw = run_command("thaw", "--json")
        assert freezing.is_frozen(mount_point)
    assert (thaw.status, thaw.document["thawed"], len(thaw.document["left_alone"])) == (1, [], 1)
    assert run_command("status").status == 0


def test_ledger_of_another_boot_is_never_thawed_from_and_is_removed(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    mount_point = scratch.make_on_loop("left").mount_point
    rescue([mount_point])
    ledger = Path(f"/run/vmsnapshot/{leave_frozen(mount_point, fault_server())}.ledger")
    # It stands for another program's freeze: nothing that was frozen before a boot is frozen after it.
    assert freezing.is_frozen(mount_point)
    try:
        content = bytearray(ledger.read_bytes())
        content[16] ^= 1
        ledger.write_bytes(content)
        assert run_command("status").status == 0
        thaw = run_command("thaw", "--json")
        assert (thaw.status, thaw.document["thawed"], thaw.document["left_alone"]) == (0, [], [])
        assert freezing.is_frozen(mount_point)
        assert not ledger.exists()
    finally:
        freezing.thaw(mount_point)
        # Only the ledger knew that expedited RCU is owed.
        Path("/sys/kernel/rcu_expedited").write_text("0")
