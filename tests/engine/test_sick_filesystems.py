"""One filesystem that cannot be opened, frozen or written, beside healthy ones: it costs what it must."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.support import freezing, processes
from tests.support.command import take_snapshot
from tests.support.filesystems import (
    ScratchFilesystem,
    ScratchFilesystems,
    shut_down,
    stop_after_an_error,
)
from tests.support.writers import writing

NOT_WRITABLE = "not-writable"


SICKNESSES = {
    "ext4 after an error": ("ext4", stop_after_an_error),
    "ext4 that was shut down": ("ext4", shut_down),
    "xfs that was shut down": ("xfs", shut_down),
}


def healthy_and_sick(
    scratch: ScratchFilesystems, rescue: ArmRescue, sickness: str
) -> tuple[ScratchFilesystem, ScratchFilesystem]:
    """Makes two filesystems. The second one cannot be written any more."""
    filesystem_type, make_sick = SICKNESSES[sickness]
    healthy, sick = scratch.make_on_loop("healthy"), scratch.make_on_loop("sick", filesystem_type)
    rescue([healthy.mount_point, sick.mount_point])
    make_sick(sick)
    return healthy, sick


def everything_in(scratch: ScratchFilesystems) -> list[Path]:
    """Returns a pattern that matches every scratch filesystem and names none."""
    return [scratch.directory / "*"]


@pytest.mark.parametrize("options", [(), ("--sync-timeout=0",)], ids=["synced", "not synced"])
@pytest.mark.parametrize("sickness", list(SICKNESSES))
def test_a_filesystem_that_cannot_be_written_is_left_out_and_costs_nothing(
    scratch: ScratchFilesystems,
    rescue: ArmRescue,
    fault_server: StartFaultServer,
    sickness: str,
    options: tuple[str, ...],
) -> None:
    server = fault_server()
    healthy, sick = healthy_and_sick(scratch, rescue, sickness)
    with writing([healthy.mount_point]):
        finished = take_snapshot(everything_in(scratch), [server.uri("disk")], *options)
    report = finished.document
    assert outcomes(report) == {str(healthy.mount_point): "thawed", str(sick.mount_point): NOT_WRITABLE}
    assert error_of(report, sick)
    assert (finished.status, report["consistency"], report["freeze_doubt"]) == (0, "filesystem", None)
    assert not freezing.is_frozen(healthy.mount_point)


@pytest.mark.parametrize("sickness", list(SICKNESSES))
def test_a_run_that_was_asked_for_a_filesystem_that_cannot_be_written_is_refused(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer, sickness: str
) -> None:
    server = fault_server()
    healthy, sick = healthy_and_sick(scratch, rescue, sickness)
    mount_points = [healthy.mount_point, sick.mount_point]
    refused = take_snapshot(mount_points, [server.uri("disk")])
    assert (refused.status, refused.error_code) == (1, NOT_WRITABLE)
    assert str(sick.mount_point) in refused.errors
    assert server.requests() == []


def report_after(between: str, scratch: ScratchFilesystems, uri: str) -> Any:
    """Plans every scratch filesystem, runs some code, takes a snapshot, and returns the report."""
    program = f"""
import os, subprocess, sys, vmsnapshot
plan = vmsnapshot.plan(include=[{str(scratch.directory / "*")!r}])
{between}
with vmsnapshot.prepare(plan, [{uri!r}], thaw_timeout=5.0) as session:
    print(session.run().to_json())
"""
    output = processes.run_bounded([sys.executable, "-c", program], limit_seconds=30.0)
    return json.loads(output)


def test_a_filesystem_that_was_unmounted_since_the_plan_is_left_out_and_costs_nothing(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays, goes = scratch.make_on_loop("stays"), scratch.make_on_loop("goes", "btrfs")
    rescue([stays.mount_point])
    unmount = f"subprocess.run(['umount', {str(goes.mount_point)!r}], check=True)"
    report = report_after(unmount, scratch, fault_server().uri("disk"))
    assert outcomes(report) == {str(stays.mount_point): "thawed", str(goes.mount_point): "unmounted"}
    assert (report["consistent"], report["freeze_doubt"]) == (True, None)


def test_a_filesystem_that_was_unmounted_lazily_and_is_in_use_makes_the_set_crash_consistent(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays, goes = scratch.make_on_loop("stays"), scratch.make_on_loop("goes")
    rescue([stays.mount_point])
    with (goes.mount_point / "open").open("w"):
        unmount = f"subprocess.run(['umount', '--lazy', {str(goes.mount_point)!r}], check=True)"
        report = report_after(unmount, scratch, fault_server().uri("disk"))
    assert outcomes(report) == {str(stays.mount_point): "thawed", str(goes.mount_point): "not-opened"}
    assert (report["consistency"], report["freeze_doubt_code"]) == ("crash", "not-opened")
    assert f"`{goes.mount_point}`" in report["why"]


def outcomes(report: Any) -> dict[str, str]:
    """Returns the outcome of each filesystem by its mount point."""
    return {item["mount_point"]: item["outcome"] for item in report["filesystems"]}


def error_of(report: Any, filesystem: ScratchFilesystem) -> str:
    """Returns what the report says is wrong with a filesystem."""
    (item,) = (item for item in report["filesystems"] if item["mount_point"] == str(filesystem.mount_point))
    return str(item["error"])
