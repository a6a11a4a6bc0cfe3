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

``status`` and ``thaw`` are for the day on which a run was killed: what is still frozen, and its thaw.
"""

from __future__ import annotations

from vmsnapshot import _native
from vmsnapshot._native import (
    BlobOutcome,
    FilesystemOutcome,
    HostCall,
    HostCallOutcome,
    Mode,
    Plan,
    PlannedFilesystem,
    Report,
    Session,
    SkippedFilesystem,
    TimelineEvent,
    WatchdogOutcome,
    plan,
    prepare,
)
from vmsnapshot.errors import ArgumentsError, PlanError, PrepareError, ThawError, VmsnapshotError
from vmsnapshot.recovery import RunStatus, ThawOutcome, status, thaw

__version__ = _native.version()

__all__ = [
    "ArgumentsError",
    "BlobOutcome",
    "FilesystemOutcome",
    "HostCall",
    "HostCallOutcome",
    "Mode",
    "Plan",
    "PlanError",
    "PlannedFilesystem",
    "PrepareError",
    "Report",
    "RunStatus",
    "Session",
    "SkippedFilesystem",
    "ThawError",
    "ThawOutcome",
    "TimelineEvent",
    "VmsnapshotError",
    "WatchdogOutcome",
    "__version__",
    "plan",
    "prepare",
    "status",
    "thaw",
]
