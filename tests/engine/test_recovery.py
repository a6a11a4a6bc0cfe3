"""A run and its watchdog are both dead and left something frozen: `status` shows it, and `thaw` thaws it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.conftest import Machine, held_ms, read_rcu
from tests.engine.runs import kill_with_watchdog, leave_frozen, outcomes
from tests.support import freezing
from tests.support.command import (
    SnapshotRun,
    read_status,
    run_command,
    run_of,
    take_snapshot,
)
from tests.support.fault_server import Creates
from tests.support.filesystems import ScratchFilesystems
from tests.support.mounts import mounts_below
from tests.support.rescue import RescueThaw


def test_status_shows_and_thaw_thaws_what_a_killed_run_and_its_watchdog_left_frozen(machine: Machine) -> None:
    with machine.open_window() as run:
        run_id = kill_with_watchdog(run)
    assert read_rcu() == "1\n"
    for mount_point in machine.mount_points:
        assert freezing.is_frozen(mount_point)

    told = run_command("status", "--json")
    assert told.status == 3
    assert {item["mount_point"] for item in told.document["frozen"]} == set(map(str, machine.mount_points))
    for item in told.document["frozen"]:
        assert (item["run_id"], item["state"]) == (run_id, "frozen")
        assert item["since"].endswith("Z")
    assert told.document["rcu_expedited"]["held_by"] == run_id
    dead = run_of(told.document, run_id)
    assert (dead["alive"], dead["watchdog_alive"], dead["finished"]) == (False, False, False)

    refused = take_snapshot(machine.mount_points, [machine.server.uri("disk")])
    assert (refused.status, refused.error_code) == (3, "left-frozen")

    thawed_ns = time.monotonic_ns()
    thaw = run_command("thaw", "--json")
    assert thaw.status == 0
    assert {item["mount_point"] for item in thaw.document["thawed"]} == set(map(str, machine.mount_points))
    assert (thaw.document["failed"], thaw.document["rcu_restored"]) == ([], True)
    for writer in machine.writers:
        assert held_ms(writer, since_ns=thawed_ns) > 0
    machine.assert_rcu_is_back()
    assert run_command("status").status == 0


def test_thaw_leaves_a_live_run_alone(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=1500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        thaw = run_command("thaw", "--json")
        assert (thaw.status, thaw.document["thawed"], len(thaw.document["left_alone"])) == (1, [], 1)
        finished = run.finish()
    assert (finished.status, outcomes(finished.document)) == (0, {"thawed"})


@pytest.fixture
def left_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> Iterator[tuple[Path, RescueThaw]]:
    """Yields a filesystem that a killed run with a killed watchdog left frozen, and the rescue for it."""
    filesystem = scratch.make_on_loop("left")
    # Some tests call the command half a dozen times before they thaw.
    armed = rescue([filesystem.mount_point], after_seconds=30)
    leave_frozen(filesystem.mount_point, fault_server())
    yield filesystem.mount_point, armed
    run_command("thaw")


def test_thaw_says_that_another_program_has_thawed_since(left_frozen: tuple[Path, RescueThaw]) -> None:
    freezing.thaw(left_frozen[0])
    # A thaw writes to an ext4. So the command knows, and does not call FITHAW.
    thaw = run_command("thaw", "--json")
    assert (thaw.status, thaw.document["thawed"], thaw.document["failed"]) == (1, [], [])
    assert len(thaw.document["left_alone"]) == 1
    assert run_command("status").status == 0


def test_thaw_finds_a_filesystem_that_is_mounted_elsewhere_since(
    left_frozen: tuple[Path, RescueThaw], scratch: ScratchFilesystems, rescue: ArmRescue
) -> None:
    mount_point, armed = left_frozen
    (device,) = (mount.source for mount in mounts_below(mount_point))
    assert armed.cancel() == []
    # Unmounted and with no open file it stays frozen, and only a new mount makes FITHAW possible.
    subprocess.run(["umount", mount_point], check=True, timeout=10)
    elsewhere = scratch.directory / "elsewhere"
    elsewhere.mkdir()
    try:
        refused = run_command("thaw", "--json")
        assert (refused.status, len(refused.document["failed"])) == (3, 1)
        assert run_command("status").status == 3
    finally:
        subprocess.run(["mount", device, elsewhere], check=True, timeout=10)
        rescue([elsewhere])
    assert freezing.is_frozen(elsewhere)
    thaw = run_command("thaw", "--json")
    assert (thaw.status, thaw.document["failed"]) == (0, [])
    assert not freezing.is_frozen(elsewhere)


def test_thaw_drops_a_filesystem_that_another_program_thawed_and_unmounted(
    left_frozen: tuple[Path, RescueThaw], scratch: ScratchFilesystems
) -> None:
    freezing.thaw(left_frozen[0])
    left_frozen[1].cancel()
    scratch.close()
    thaw = run_command("thaw", "--json")
    assert (thaw.status, thaw.document["failed"]) == (0, [])
    status = run_command("status", "--json")
    assert (status.status, status.document["frozen"], status.document["runs"]) == (0, [], [])


def ledger_of(run_id: str) -> Path:
    return Path(f"/run/vmsnapshot/{run_id}.ledger")


def make_foreign(ledger: Path) -> None:
    """Turns a ledger into one of another layout: another version, and nothing else in its known place."""
    content = bytearray(ledger.read_bytes())
    content[7:8] = b"9"
    # Every version keeps the mark, the pages, the first 32 bytes of the header and 16 of an entry.
    content[32:4096] = b"\xaa" * (4096 - 32)
    content[4096 + 16 :] = b"\xaa" * (len(content) - 4096 - 16)
    ledger.write_bytes(content)


def test_ledger_of_another_version_is_named_and_its_freeze_is_thawed(
    left_frozen: tuple[Path, RescueThaw], fault_server: StartFaultServer
) -> None:
    mount_point, _ = left_frozen
    (before,) = read_status()["runs"]
    make_foreign(ledger_of(before["run_id"]))

    told = run_command("status", "--json")
    assert told.status == 3
    (run,) = told.document["runs"]
    assert (run["run_id"], run["state"], run["pid"]) == (before["run_id"], "of-another-version", None)
    (frozen,) = told.document["frozen"]
    assert frozen["device"] == before["filesystems"][0]["device"]
    assert before["run_id"] in run_command("status").output

    refused = take_snapshot([mount_point], [fault_server().uri("disk")])
    assert (refused.status, refused.error_code) == (3, "left-frozen")
    assert freezing.is_frozen(mount_point)

    thaw = run_command("thaw", "--json")
    assert (thaw.status, len(thaw.document["thawed"]), thaw.document["failed"]) == (0, 1, [])
    assert not freezing.is_frozen(mount_point)
    assert run_command("status").status == 0
    assert thaw.document["rcu_restored"]
    assert read_rcu() == "0\n"


def test_file_that_is_no_ledger_is_named_and_does_not_hinder(root: None) -> None:  # noqa: ARG001
    path = ledger_of("2026-01-01T000000000000Z-1")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(b"vmsnapL1" + b"x" * 100)
    try:
        told = run_command("status", "--json")
        assert told.status == 1
        (unreadable,) = told.document["unreadable"]
        assert unreadable["path"] == str(path)
        assert str(path) in run_command("status").output
        thaw = run_command("thaw", "--json")
        assert (thaw.status, len(thaw.document["left_alone"])) == (1, 1)
        assert path.exists()
    finally:
        path.unlink()
    assert run_command("status").status == 0


def test_only_root_can_read_the_state_of_a_run(machine: Machine) -> None:
    with machine.open_window() as run:
        state = Path("/run/vmsnapshot")
        ledger = state / f"{run.run_id()}.ledger"
        seen = [(path.stat().st_uid, path.stat().st_mode & 0o777) for path in (state, ledger, state / "lock")]
    assert seen == [(0, 0o700), (0, 0o600), (0, 0o600)]


def test_ledger_is_on_tmpfs_also_where_run_is_on_a_disk(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    disk, run = scratch.make_on_loop("disk"), scratch.make_on_loop("run")
    rescue([disk.mount_point, run.mount_point])
    program = 'mount --bind "$0" /run && "$@"; status=$?; stat -f -c %T /run/vmsnapshot >&2; exit $status'
    before = ("unshare", "--mount", "--propagation=private", "sh", "-c", program, str(run.mount_point))
    server = fault_server()
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], before=before)
    assert finished.status == 0, finished.errors
    assert outcomes(finished.document) == {"thawed"}
    assert finished.errors == "tmpfs\n"
    # Everything was written to that tmpfs, and nothing to the disk below.
    assert list((run.mount_point / "vmsnapshot").iterdir()) == []
