"""What `machine` reads from the kernel, and the plans that are made from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vmsnapshot
from tests.support.filesystems import ScratchFilesystems


def test_mounts_are_those_of_the_kernel() -> None:
    machine = vmsnapshot.machine()
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    assert [mount.mount_id for mount in machine.mounts] == [int(line.split()[0]) for line in lines]
    (proc,) = (mount for mount in machine.mounts if mount.mount_point == "/proc" and mount.is_visible)
    number = Path("/proc").stat().st_dev
    assert proc.device == f"{os.major(number)}:{os.minor(number)}"


def test_excluded_mount_is_left_out_and_nothing_else(scratch: ScratchFilesystems) -> None:
    mount_point = str(scratch.make_on_loop("disk").mount_point)
    machine = vmsnapshot.machine()
    planned = {filesystem.device for filesystem in machine.plan().filesystems}
    (mount,) = (mount for mount in machine.mounts if mount.mount_point == mount_point)
    assert mount.device in planned
    plan = machine.plan(exclude_mounts=[mount])
    assert {filesystem.device for filesystem in plan.filesystems} == planned - {mount.device}
    (skipped,) = (filesystem for filesystem in plan.skipped if filesystem.device == mount.device)
    assert skipped.reason == "excluded"


def test_pattern_that_cannot_be_used_is_an_error_or_is_reported() -> None:
    machine = vmsnapshot.machine()
    with pytest.raises(vmsnapshot.PlanError) as raised:
        machine.plan(exclude=["["])
    assert raised.value.code == "bad-pattern"
    plan = machine.plan(exclude=["["], unusable_excludes="report")
    assert [pattern for pattern, _ in plan.unusable_excludes] == ["["]
    with pytest.raises(ValueError, match="unusable_excludes"):
        machine.plan(unusable_excludes="ignore")  # type: ignore[arg-type]
