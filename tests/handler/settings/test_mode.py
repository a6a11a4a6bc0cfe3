"""Who takes the snapshots: every row of the contract's decision table (6.5), and which row wins."""

from __future__ import annotations

import pytest

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.mode import choose_mode
from vmsnapshot.handler.settings.wire import (
    Command,
    CustomSettings,
    IncludedDisks,
    Job,
    Settings,
    SettingsError,
    SnapshotMode,
)

HOST_ONLY = [
    pytest.param(IncludedDisks(luns=(0,), any_write_accelerated_disk=True), id="row 5"),
    pytest.param(IncludedDisks(luns=(0,), vmgs_blob=True), id="row 6"),
    pytest.param(IncludedDisks(luns=(0,), any_direct_drive_disk=True), id="row 7"),
]
DISKS_EXCLUDED = [
    pytest.param(IncludedDisks(any_disk_excluded=True, any_write_accelerated_disk=True), id="row 5"),
    pytest.param(IncludedDisks(any_disk_excluded=True, vmgs_blob=True), id="row 6"),
    pytest.param(IncludedDisks(any_disk_excluded=True, any_direct_drive_disk=True), id="row 7"),
]


def chosen(
    disks: IncludedDisks | None = None,
    *,
    asked: SnapshotMode | None = None,
    write_accelerated_luns: tuple[int, ...] = (),
    configured: SnapshotMode | None = None,
) -> SnapshotMode:
    settings = Settings(
        job=Job(task_id="task_1"),
        command=Command.SNAPSHOT,
        backup_metadata=(),
        snapshot_task_token=Secret(""),
        disks=disks or IncludedDisks(),
        custom=CustomSettings(take_snapshot_from=asked, write_accelerated_luns=write_accelerated_luns),
    )
    return choose_mode(settings, configured)


def test_row_1_the_host_is_asked_first_by_default() -> None:
    assert chosen() is SnapshotMode.FIRST_HOST_THEN_GUEST
    assert chosen(IncludedDisks(luns=(0, -1))) is SnapshotMode.FIRST_HOST_THEN_GUEST


@pytest.mark.parametrize("mode", list(SnapshotMode))
def test_row_2_the_job_says_who(mode: SnapshotMode) -> None:
    assert chosen(asked=mode) is mode


@pytest.mark.parametrize("mode", list(SnapshotMode))
def test_row_3_the_configuration_wins_over_the_job(mode: SnapshotMode) -> None:
    assert chosen(configured=mode) is mode
    assert chosen(configured=mode, asked=SnapshotMode.ONLY_GUEST) is mode
    assert chosen(configured=mode, asked=SnapshotMode.ONLY_HOST) is mode


def test_row_4_a_write_accelerated_lun_leaves_only_the_host() -> None:
    assert (
        chosen(
            IncludedDisks(luns=(0, 3, -1)),
            write_accelerated_luns=(3, 7),
            configured=SnapshotMode.ONLY_GUEST,
        )
        is SnapshotMode.ONLY_HOST
    )
    assert (
        chosen(IncludedDisks(luns=(0, -1)), write_accelerated_luns=(-1,), asked=SnapshotMode.ONLY_GUEST)
        is SnapshotMode.ONLY_HOST
    )


def test_row_4_does_not_apply_to_luns_of_other_disks() -> None:
    disks = IncludedDisks(luns=(0, -1))
    assert (
        chosen(disks, write_accelerated_luns=(3,), asked=SnapshotMode.ONLY_GUEST) is SnapshotMode.ONLY_GUEST
    )
    assert chosen(write_accelerated_luns=(3,)) is SnapshotMode.FIRST_HOST_THEN_GUEST


@pytest.mark.parametrize("disks", HOST_ONLY)
def test_rows_5_to_7_leave_only_the_host(disks: IncludedDisks) -> None:
    for mode in SnapshotMode:
        assert chosen(disks, asked=mode, configured=mode) is SnapshotMode.ONLY_HOST
    assert chosen(IncludedDisks(any_direct_drive_disk=True)) is SnapshotMode.ONLY_HOST


@pytest.mark.parametrize("disks", DISKS_EXCLUDED)
def test_row_8_excluded_disks_without_luns_fail_where_only_the_host_can(disks: IncludedDisks) -> None:
    with pytest.raises(SettingsError) as caught:
        chosen(disks, asked=SnapshotMode.ONLY_GUEST, configured=SnapshotMode.ONLY_GUEST)
    error = caught.value
    assert error.code == Code.INVALID_LUN_LIST
    assert error.job == Job(task_id="task_1")
    # The exact words, because support staff search for them.
    assert str(error) == (
        "Invalid Input. IsAnyDiskExcluded is marked as true but input LUN list received from CRP is empty. "
        "which is not allowed if VM has Direct Drives or if VM has Write Accelerated disks "
        "or if VM is a TVM/CVM."
    )


@pytest.mark.parametrize("mode", [None, *SnapshotMode])
def test_row_9_excluded_disks_without_luns_leave_only_the_guest(mode: SnapshotMode | None) -> None:
    disks = IncludedDisks(any_disk_excluded=True)
    assert chosen(disks, asked=mode, configured=mode) is SnapshotMode.ONLY_GUEST
    assert chosen(disks, write_accelerated_luns=(0,)) is SnapshotMode.ONLY_GUEST


@pytest.mark.parametrize("mode", list(SnapshotMode))
def test_rows_8_and_9_do_not_apply_to_a_list_with_luns(mode: SnapshotMode) -> None:
    assert chosen(IncludedDisks(luns=(-1,), any_disk_excluded=True), asked=mode) is mode
    disks = IncludedDisks(luns=(0,), any_disk_excluded=True, any_direct_drive_disk=True)
    assert chosen(disks, asked=mode) is SnapshotMode.ONLY_HOST


# Row 10 has no test here: `settings` and `configuration` have already turned an unknown value into `None`.
