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

``status`` and ``thaw`` are for the day on which a run was killed: what is still frozen, and its thaw.
``machine`` returns what is mounted and on which block devices, for programs that have rules of their own.
"""

from __future__ import annotations

from vmsnapshot import _native
from vmsnapshot._native import (
    ApplicationOutcome,
    BlobOutcome,
    BlockDevice,
    CommandOutcome,
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
    Signatures,
    SkippedFilesystem,
    Status,
    Thawed,
    ThawFailed,
    ThawLeftAlone,
    ThawResult,
    TimelineEvent,
    UnreadableLedger,
    UnreadableMounts,
    WatchdogOutcome,
    give_control_group,
    leave_control_group,
    machine,
    plan,
    prepare,
    status,
    thaw,
    trust_roots,
    uri_without_query,
)
from vmsnapshot.errors import ArgumentsError, PlanError, PrepareError, ThawError, VmsnapshotError
from vmsnapshot.quiesce import Application, Hook, MariaDb, MySql, PostgreSql, Scripts

__version__ = _native.version()

__all__ = [
    "Application",
    "ApplicationOutcome",
    "ArgumentsError",
    "BlobOutcome",
    "BlockDevice",
    "CommandOutcome",
    "FilesystemOutcome",
    "FrozenFilesystem",
    "Hook",
    "HostCall",
    "HostCallOutcome",
    "Machine",
    "MariaDb",
    "Mode",
    "Mount",
    "MySql",
    "Plan",
    "PlanError",
    "PlannedFilesystem",
    "PostgreSql",
    "PrepareError",
    "RcuStatus",
    "Report",
    "RunFilesystem",
    "RunStatus",
    "Scripts",
    "Session",
    "Signatures",
    "SkippedFilesystem",
    "Status",
    "ThawError",
    "ThawFailed",
    "ThawLeftAlone",
    "ThawResult",
    "Thawed",
    "TimelineEvent",
    "UnreadableLedger",
    "UnreadableMounts",
    "VmsnapshotError",
    "WatchdogOutcome",
    "__version__",
    "give_control_group",
    "leave_control_group",
    "machine",
    "plan",
    "prepare",
    "status",
    "thaw",
    "trust_roots",
    "uri_without_query",
]
