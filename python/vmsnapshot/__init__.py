"""Snapshots all disks of a Linux VM at one moment: freezes its filesystems, snapshots every disk blob, thaws.

A minimal use, as root::

    import vmsnapshot

    plan = vmsnapshot.plan(exclude=["/srv/scratch"])
    with vmsnapshot.prepare(plan, blobs=sas_uris, thaw_timeout=10.0) as session:
        report = session.run()

    if not report.all_thawed:
        print("still frozen: run `vmsnapshot thaw`")
    elif report.consistent:
        print([blob.snapshot_uri for blob in report.blobs])
    else:
        print(report.why)

``plan`` reads the system's tables and touches nothing. ``prepare`` does all that can be done beforehand (open
the mounts, connect to every blob, start the watchdog, write dirty data back) and raises when something is
wrong; nothing is frozen yet. ``Session.run`` freezes, snapshots and thaws; once something was frozen it never
raises but *reports*, because several things can fail at once and one of them may be "did not thaw".

``status`` and ``thaw`` are for the day on which a run was killed: what is still frozen, and its thaw. ``machine``
returns what is mounted and on which block devices, for programs that have rules of their own.
"""

from __future__ import annotations

from vmsnapshot import _native
from vmsnapshot._native import (
    BlobOutcome,
    BlockDevice,
    FilesystemOutcome,
    FrozenFilesystem,
    HostCall,
    HostCallOutcome,
    Machine,
    Mode,
    Mount,
    Plan,
    PlannedFilesystem,
    RcuStatus,
    Report,
    RunFilesystem,
    RunStatus,
    Session,
    SkippedFilesystem,
    Status,
    ThawFailed,
    ThawLeftAlone,
    ThawResult,
    Thawed,
    TimelineEvent,
    UnreadableLedger,
    WatchdogOutcome,
    leave_control_group,
    machine,
    plan,
    prepare,
    status,
    thaw,
)
from vmsnapshot.errors import ArgumentsError, PlanError, PrepareError, ThawError, VmsnapshotError

__version__ = _native.version()

__all__ = [
    "ArgumentsError",
    "BlobOutcome",
    "BlockDevice",
    "FilesystemOutcome",
    "FrozenFilesystem",
    "HostCall",
    "HostCallOutcome",
    "Machine",
    "Mode",
    "Mount",
    "Plan",
    "PlanError",
    "PlannedFilesystem",
    "PrepareError",
    "RcuStatus",
    "Report",
    "RunFilesystem",
    "RunStatus",
    "Session",
    "SkippedFilesystem",
    "Status",
    "ThawError",
    "ThawFailed",
    "ThawLeftAlone",
    "ThawResult",
    "Thawed",
    "TimelineEvent",
    "UnreadableLedger",
    "VmsnapshotError",
    "WatchdogOutcome",
    "__version__",
    "leave_control_group",
    "machine",
    "plan",
    "prepare",
    "status",
    "thaw",
]
