"""Which filesystems are frozen, and in which order: types, stacks, bind mounts, subvolumes, namespaces."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.support import freezing, processes
from tests.support.command import read_status, run_command, take_snapshot
from tests.support.fault_server import Creates, FaultServer
from tests.support.filesystems import REPOSITORY, ScratchFilesystem, ScratchFilesystems
from tests.support.mounts import mounts_below
from tests.support.writers import writing


def command(*words: str | Path) -> None:
    processes.run_bounded(words)


def make_all(scratch: ScratchFilesystems, types: Sequence[str]) -> list[ScratchFilesystem]:
    return [
        scratch.make_on_loop(f"disk{number}", filesystem_type) for number, filesystem_type in enumerate(types)
    ]


def snapshot_ok(mount_points: Sequence[Path], server: FaultServer, *options: str) -> Any:
    finished = take_snapshot(mount_points, [server.uri("disk")], *options)
    assert finished.status == 0, finished
    assert finished.document["consistent"] is True
    return finished.document


def empty_fat12() -> bytes:
    """A 4 MiB FAT12: 1 reserved sector, 2 tables of 6 sectors, 512 root entries, clusters of 2 KiB."""
    parameters = struct.pack("<HBHBHHBH", 512, 4, 1, 2, 512, 8192, 0xF8, 6)
    boot_sector = (b"\xeb\x3c\x90vmsnapsh" + parameters).ljust(510, b"\0") + b"\x55\xaa"
    table = b"\xf8\xff\xff".ljust(6 * 512, b"\0")
    return (boot_sector + table * 2).ljust(8192 * 512, b"\0")


def plan_of(*patterns: str) -> Any:
    finished = run_command("plan", "--json", *(f"--include={pattern}" for pattern in patterns))
    assert finished.status == 0, finished
    return finished.document


@pytest.mark.parametrize(
    "types",
    [["ext4"], ["xfs"], ["btrfs"], ["ext4", "ext4", "xfs", "btrfs", "ext4"]],
    ids=lambda types: "+".join(types),
)
def test_filesystems_are_frozen_over_every_snapshot(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, types: list[str]
) -> None:
    server = fault_server(default=Creates(after_ms=200))
    mount_points = [filesystem.mount_point for filesystem in make_all(scratch, types)]
    with writing(mount_points) as writers:
        rescue(mount_points)
        report = snapshot_ok(mount_points, server)
        for writer in writers:
            writer.wait_until_writing()
            # The stall covers the request. Writers can still write until the freeze is nearly done.
            assert 190.0 < writer.longest_stall_ms() < 1500.0
    assert sorted(item["filesystem_type"] for item in report["filesystems"]) == sorted(types)
    for item in report["filesystems"]:
        assert (item["outcome"], item["thawed_by"], item["level"]) == ("thawed", "run", 0)
        assert 0.0 <= item["freeze_ms"] < item["frozen_ms"] <= report["window_ms"]
        assert item["frozen_at"] < item["thawed_at"]
    for mount_point in mount_points:
        assert not freezing.is_frozen(mount_point)


def test_a_stack_freezes_from_the_top_and_thaws_from_the_bottom(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=1024)
    middle = scratch.make_on_loop("middle", "xfs", size_mib=512, inside=lower)
    upper = scratch.make_on_loop("upper", "btrfs", inside=middle)
    mount_points = [lower.mount_point, middle.mount_point, upper.mount_point]
    rescue(mount_points)
    for mount_point in mount_points:
        (mount_point / "dirty").write_bytes(os.urandom(1024 * 1024))
    report = snapshot_ok(mount_points, fault_server())
    levels = {item["mount_point"]: item["level"] for item in report["filesystems"]}
    assert levels == {str(upper.mount_point): 0, str(middle.mount_point): 1, str(lower.mount_point): 2}

    def order(event: str) -> list[str]:
        return [item["subject"] for item in report["timeline"] if item["event"] == event]

    from_the_top = [str(path) for path in reversed(mount_points)]
    assert order("freeze-called") == order("freeze-returned") == from_the_top
    assert order("thaw-called") == order("thawed") == from_the_top[::-1]
    at_ms = {(item["event"], item["subject"]): item["at_ms"] for item in report["timeline"]}
    assert at_ms["freeze-returned", from_the_top[0]] <= at_ms["freeze-called", from_the_top[1]]
    assert at_ms["thawed", from_the_top[2]] <= at_ms["thaw-called", from_the_top[1]]


def test_a_filesystem_with_bind_mounts_is_frozen_once_even_by_its_read_only_mount(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    bound = [scratch.directory / name for name in ("bound", "read-only")]
    for path in bound:
        path.mkdir()
        command("mount", "--bind", filesystem.mount_point, path)
    command("mount", "-o", "remount,bind,ro", bound[1])
    (planned,) = plan_of(f"mount={filesystem.mount_point}")["filesystems"]
    assert sorted([planned["mount_point"], *planned["also_mounted_at"]]) == sorted(
        map(str, [filesystem.mount_point, *bound])
    )
    report = snapshot_ok([filesystem.mount_point, *bound], fault_server())
    assert len(report["filesystems"]) == 1
    # The remaining pattern names the read-only bind mount only. Other mounts can write, so it is frozen.
    command("umount", bound[0])
    report = snapshot_ok([bound[1]], fault_server())
    assert [item["outcome"] for item in report["filesystems"]] == ["thawed"]
    command("umount", bound[1])


def test_a_btrfs_with_two_subvolumes_is_frozen_once(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk", "btrfs")
    rescue([filesystem.mount_point])
    command("btrfs", "subvolume", "create", filesystem.mount_point / "inner")
    elsewhere = scratch.directory / "elsewhere"
    elsewhere.mkdir()
    command("mount", "-o", "subvol=inner", filesystem.device, elsewhere)
    report = snapshot_ok([filesystem.mount_point, elsewhere], fault_server())
    assert [item["outcome"] for item in report["filesystems"]] == ["thawed"]
    command("umount", elsewhere)


def test_vfat_is_skipped_with_a_reason_and_is_an_error_when_a_pattern_names_it(
    scratch: ScratchFilesystems,
) -> None:
    image, mount_point = scratch.directory / "efi.img", scratch.directory / "efi"
    image.write_bytes(empty_fat12())
    mount_point.mkdir()
    try:
        command("mount", "-t", "vfat", "-o", "loop", image, mount_point)
    except processes.CommandError as error:
        if "unknown filesystem type" not in str(error):
            raise
        pytest.skip("this kernel has no vfat")
    assert_skipped(scratch, mount_point, "not-freezable")


def test_a_read_only_filesystem_is_skipped_and_is_an_error_when_a_pattern_names_it(
    scratch: ScratchFilesystems,
) -> None:
    filesystem = scratch.make_on_loop("disk")
    command("mount", "-o", "remount,ro", filesystem.mount_point)
    assert_skipped(scratch, filesystem.mount_point, "read-only")


def assert_skipped(scratch: ScratchFilesystems, mount_point: Path, reason: str) -> None:
    other = scratch.make_on_loop("other")
    plan = plan_of(f"{scratch.directory}/*")
    assert [item["mount_point"] for item in plan["filesystems"]] == [str(other.mount_point)]
    (skipped,) = (item for item in plan["skipped"] if item["mount_point"] == str(mount_point))
    assert skipped["reason"] == reason
    assert skipped["why"]
    refused = run_command("plan", "--json", f"--include={mount_point}")
    assert (refused.status, refused.error_code) == (2, "not-freezable")
    assert str(mount_point) in refused.errors


def test_patterns_select_by_mount_point_glob_type_and_device(scratch: ScratchFilesystems) -> None:
    first, second, third = make_all(scratch, ["ext4", "xfs", "ext4"])
    everything = f"{scratch.directory}/*"

    def chosen(*options: str) -> set[str]:
        finished = run_command("plan", "--json", *options)
        assert finished.status == 0, finished
        return {Path(item["mount_point"]).name for item in finished.document["filesystems"]}

    assert chosen(f"--include={everything}") == {"disk0", "disk1", "disk2"}
    assert chosen(f"--include={first.mount_point}") == {"disk0"}
    assert chosen(f"--include={scratch.directory}/disk[12]") == {"disk1", "disk2"}
    assert chosen(f"--include={second.device}") == {"disk1"}
    assert chosen(f"--include={everything}", "--exclude=type=xfs") == {"disk0", "disk2"}
    assert chosen(f"--include={everything}", f"--exclude=device={third.device}") == {"disk0", "disk1"}
    number = first.mount_point.stat().st_dev
    assert chosen(f"--include={os.major(number)}:{os.minor(number)}") == {"disk0"}
    unmatched = run_command("plan", f"--include={everything}", "--exclude=/no/such/*")
    assert (unmatched.status, "/no/such/*" in unmatched.errors) == (0, True)


def test_a_filesystem_mounted_only_in_another_namespace_is_frozen_too(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    program = 'import sys; print("there", flush=True); sys.stdin.read()'
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == b"there\n"
        # The unmount is lazy because the rescue has it open.
        command("umount", "--lazy", filesystem.mount_point)
        (planned,) = plan_of(f"mount={filesystem.mount_point}")["filesystems"]
        assert planned["open_path"] == f"/proc/{container.pid}/root{filesystem.mount_point}"
        server = fault_server(default=Creates(after_ms=100))
        report = snapshot_ok([filesystem.mount_point], server)
        assert [item["outcome"] for item in report["filesystems"]] == ["thawed"]
    finally:
        processes.kill(container)
    command("mount", filesystem.device, filesystem.mount_point)
    assert not freezing.is_frozen(filesystem.mount_point)


def run_between(program_after_plan: str, mount_point: Path) -> tuple[str, Any]:
    """Plans ``mount_point``, runs some code, prepares. Returns the error's code and the status afterwards."""
    program = f"""
import os, subprocess, sys, vmsnapshot
mount_point = {str(mount_point)!r}
plan = vmsnapshot.plan(include=["mount=" + mount_point])
{textwrap.dedent(program_after_plan)}
try:
    vmsnapshot.prepare(plan)
    print("prepared")
except vmsnapshot.PrepareError as error:
    print(error.code)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=20)
    return output.decode().strip(), read_status()


def levels_below(directory: Path) -> dict[str, int]:
    """Plans everything mounted below a directory. Returns the level of each mount point, relative to it."""
    return {
        str(Path(item["mount_point"]).relative_to(directory)): item["level"]
        for item in plan_of(f"mount={directory}/**")["filesystems"]
    }


@contextlib.contextmanager
def moved_away(scratch: ScratchFilesystems, *inner: ScratchFilesystem) -> Iterator[None]:
    """Detaches the mount of ``a``, on which the files of ``inner`` lie, and leaves a bind mount at ``c``.

    The kernel then shows the file of a loop device as if it lay on ``/``.
    """
    path_before = scratch.directory / "a"
    path_now = scratch.directory / "c"
    path_now.mkdir()
    command("mount", "--bind", path_before, path_now)
    command("umount", "--lazy", path_before)
    try:
        yield
    finally:
        # The clean-up finds a loop device by the path of its file, which is wrong here. The unmount is lazy
        # because the rescue has it open.
        for filesystem in reversed(inner):
            command("umount", "--lazy", filesystem.mount_point)
            command("losetup", "--detach", filesystem.device)


@pytest.mark.parametrize("lower_type", ["ext4", "btrfs"])
def test_a_loop_freezes_before_the_filesystem_of_its_file_whatever_its_path_says(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, lower_type: str
) -> None:
    lower = scratch.make_on_loop("a", lower_type, size_mib=512)
    upper = scratch.make_on_loop("b", inside=lower)
    with moved_away(scratch, upper):
        backing_file = Path("/sys/block", upper.device.name, "loop/backing_file").read_text()
        assert backing_file == "/b.img\n"
        assert levels_below(scratch.directory) == {"b": 0, "c": 1}
        mount_points = [upper.mount_point, scratch.directory / "c"]
        rescue(mount_points)
        (upper.mount_point / "dirty").write_bytes(os.urandom(1024 * 1024))
        report = snapshot_ok(mount_points, fault_server())
        assert [item["level"] for item in report["filesystems"]] == [0, 1]


def test_a_loop_on_btrfs_is_ordered_by_the_subvolume_that_its_file_lies_on(
    scratch: ScratchFilesystems,
) -> None:
    lower = scratch.make_on_loop("a", "btrfs", size_mib=1024)
    middle = scratch.make_on_loop("b", "btrfs", size_mib=512, inside=lower)
    upper = scratch.make_on_loop("d", inside=middle)
    with moved_away(scratch, middle, upper):
        assert levels_below(scratch.directory) == {"d": 0, "b": 1, "c": 2}


def test_a_mount_that_vanished_since_the_plan_is_refused(scratch: ScratchFilesystems) -> None:
    filesystem = scratch.make_on_loop("disk")
    code, status = run_between('subprocess.run(["umount", mount_point], check=True)', filesystem.mount_point)
    # The directory still exists, but on the filesystem below.
    assert code == "mount-vanished"
    assert status["frozen"] == []


def test_a_mount_point_with_another_filesystem_since_the_plan_is_refused(scratch: ScratchFilesystems) -> None:
    planned, other = make_all(scratch, ["ext4", "ext4"])
    code, status = run_between(
        f"""
        subprocess.run(["umount", mount_point], check=True)
        subprocess.run(["mount", "--bind", {str(other.mount_point)!r}, mount_point], check=True)
        """,
        planned.mount_point,
    )
    assert code == "mount-changed"
    command("umount", planned.mount_point)
    assert status["frozen"] == []


def test_a_filesystem_that_was_covered_since_the_plan_is_opened_below_the_cover(
    scratch: ScratchFilesystems,
) -> None:
    planned, other = make_all(scratch, ["ext4", "ext4"])
    code, status = run_between(
        f'subprocess.run(["mount", "--bind", {str(other.mount_point)!r}, mount_point], check=True)',
        planned.mount_point,
    )
    assert code == "prepared"
    command("umount", planned.mount_point)
    assert status["frozen"] == []


def test_dirty_data_is_written_before_the_window(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk", size_mib=256)
    rescue([filesystem.mount_point])
    # The data becomes dirty just before the sync, so that nothing else writes it out. FIFREEZE would
    # write it too, so what counts is what the device has written when the run starts to freeze.
    program = f"""
        import os, pathlib, vmsnapshot
        written = {{}}
        def progress(phase):
            if phase == "sync":
                pathlib.Path({str(filesystem.mount_point / "dirty")!r}).write_bytes(os.urandom(32 << 20))
            statistics = pathlib.Path("/sys/block/{filesystem.device.name}/stat").read_text().split()
            written[phase] = int(statistics[6]) * 512
        plan = vmsnapshot.plan(include=["mount={filesystem.mount_point}"])
        session = vmsnapshot.prepare(plan, [{fault_server().uri("disk")!r}], progress=progress)
        report = session.run()
        assert report.consistent, report.why
        assert "sync-late" not in [item.event for item in report.timeline]
        print(written["freeze"] - written["sync"])
    """
    output = processes.run_bounded([sys.executable, "-c", textwrap.dedent(program)])
    assert int(output) >= 32 << 20


def test_a_mount_point_that_is_not_utf8_is_planned_frozen_and_thawed(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk")
    odd = Path(os.fsdecode(os.fsencode(scratch.directory) + b"/a \\b\n\xff\xe4"))
    odd.mkdir()
    command("mount", "--bind", filesystem.mount_point, os.fsencode(odd).decode(errors="surrogateescape"))
    command("umount", filesystem.mount_point)
    rescue([odd])
    pattern = f"device={filesystem.device}"
    plan = plan_of(pattern)
    (planned,) = plan["filesystems"]
    assert planned["mount_point"].endswith("\\xff\\xe4")
    finished = run_command(
        "snapshot",
        "--json",
        "--no-proxy",
        "--blobs-from=-",
        f"--mount={pattern}",
        standard_input=fault_server().uri("disk"),
    )
    assert finished.status == 0, finished
    (item,) = finished.document["filesystems"]
    assert item["mount_point"] == planned["mount_point"]
    assert not freezing.is_frozen(odd)
    # A pattern can use the name as the plan shows it.
    assert len(plan_of(f"mount={planned['mount_point']}")["filesystems"]) == 1


@pytest.mark.timeout(120)
def test_more_filesystems_than_fit_into_one_frame_are_frozen_and_thawed(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    # One frame carries 128 descriptors. Copies of one image suffice: ext4 accepts a repeated UUID.
    count = 132
    template = scratch.directory / "template.img"
    with template.open("xb") as file:
        file.truncate(4 * 1024 * 1024)
    command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "nodiscard", template)
    mount_points = []
    for number in range(count):
        mount_point, image = scratch.directory / f"many{number}", scratch.directory / f"many{number}.img"
        mount_point.mkdir()
        image.write_bytes(template.read_bytes())
        command("mount", "-o", "loop", image, mount_point)
        mount_points.append(mount_point)
    assert len(mounts_below(scratch.directory)) == count
    rescue(mount_points, after_seconds=20.0)
    finished = run_command(
        "snapshot",
        "--json",
        "--no-proxy",
        "--blobs-from=-",
        f"--mount=mount={scratch.directory}/many*",
        standard_input=fault_server(default=Creates(after_ms=20)).uri("disk"),
    )
    assert finished.status == 0, finished.errors
    report = finished.document
    assert [item["outcome"] for item in report["filesystems"]] == ["thawed"] * count
    assert report["watchdog"]["peak_memory_kib"] < 12 * 1024
