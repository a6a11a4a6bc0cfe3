"""Takes consistent snapshots of a Linux VM: freezes its filesystems, snapshots every disk blob, thaws.

A minimal example, run as root::

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

``plan`` reads the kernel's tables and changes nothing. ``prepare`` does everything that can be done before
the freeze: it opens the mounts, connects to every blob, starts the watchdog and writes dirty data back. It
raises if any of this fails, and nothing is frozen then. ``Session.run`` freezes, snapshots and thaws. Once it
has frozen a filesystem it never raises. It returns a report instead, because several things can fail at once
and one of them may be the thaw.

``status`` and ``thaw`` help after a run was killed: they show what is still frozen, and thaw it.
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
