"""Chooses who takes the snapshots of a job, by the decision table of the extension's contract (6.5)."""

from __future__ import annotations

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.settings.wire import Settings, SettingsError, SnapshotMode

# The wording of the reference. Support staff know it.
_NO_LUNS = (
    "Invalid Input. IsAnyDiskExcluded is marked as true but input LUN list received from CRP is empty. "
    "which is not allowed if VM has Direct Drives or if VM has Write Accelerated disks or if VM is a TVM/CVM."
)


def choose_mode(settings: Settings, configured: SnapshotMode | None) -> SnapshotMode:
    """Returns who takes the snapshots. `configured` is ``SnapshotMethod`` of vmbackup.conf.

    Raises:
        SettingsError: disks are excluded, no disk is named, and only the host could take the snapshots.
    """
    disks = settings.disks
    only_the_host_can = (
        disks.any_write_accelerated_disk or disks.vmgs_blob or disks.any_direct_drive_disk
    )  # rows 5 to 7
    if disks.any_disk_excluded and not disks.luns:
        # For the host, an empty list means all disks. It would snapshot the excluded disks too.
        if only_the_host_can:  # row 8
            raise SettingsError(_NO_LUNS, code=Code.INVALID_LUN_LIST, job=settings.job)
        return SnapshotMode.ONLY_GUEST  # row 9
    if only_the_host_can or set(disks.luns) & set(settings.custom.write_accelerated_luns):  # row 4
        return SnapshotMode.ONLY_HOST
    # Rows 3, 2, and 1 with 10.
    return configured or settings.custom.take_snapshot_from or SnapshotMode.FIRST_HOST_THEN_GUEST
