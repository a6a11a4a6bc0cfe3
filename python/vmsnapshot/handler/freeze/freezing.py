"""Plans, prepares and runs the engine: the part that a backup job and a restore point share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vmsnapshot
from vmsnapshot import Application, HostCall, Machine, Mount, Plan, PrepareError, Report, Session
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.freeze.lock import LockHeldError, LockUnavailableError, SafeFreezeLock
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration
from vmsnapshot.handler.machine.disks import Disks
from vmsnapshot.handler.secret import redacted
from vmsnapshot.interruptions import Interruptions

if TYPE_CHECKING:
    from vmsnapshot._native import Phase, TimelineEventKind  # noqa: TID251 (literals, for types)

# The contract's limit for a storage call (7.7). It limits the connecting before the freeze, and then the wait
# for the answer of each disk. The call to the host has a limit of its own.
STORAGE_CALL_LIMIT_SECONDS = 10.0
# How long to wait for another run of the engine. The same as for the lock.
ANOTHER_RUN_LIMIT_SECONDS = 35.0
_RETRY_SECONDS = 0.1

# What the log calls the events of a run.
_EVENT_WORDS: dict[TimelineEventKind, str] = {
    "application-quiesced": "application holds still",
    "application-released": "application released",
    "sync-late": "sync has not returned in time",
    "sync-failed": "sync failed",
    "freeze-called": "freeze called",
    "freeze-returned": "freeze returned",
    "thaw-called": "thaw called",
    "thawed": "thawed",
    "request-sent": "request sent",
    "request-ended": "request ended",
    "window-closed": "window closed",
}


@dataclass(frozen=True)
class Freezing:
    """Plans, prepares and runs as ``vmbackup.conf`` says. Holds signals from the phase ``freeze`` on."""

    configuration: VmBackupConfiguration
    interruptions: Interruptions
    log: Log
    freeze_is_unwanted_by: Path | None = None
    """The file in which the owner says that nothing is to be frozen, or `None`."""

    def plan(self, machine: Machine, also_excluded: Iterable[Mount] = ()) -> Plan:
        """Plans everything that can be frozen except the temporary disk, ``MountsToSkip`` and
        `also_excluded`, or nothing if the owner wants no freeze.

        Raises:
            PlanError: no plan can be made.
        """
        disks = Disks(machine)
        temporary = [mount for mount in machine.mounts if disks.is_on_resource_disk(mount)]
        plan = machine.plan(
            exclude=self.configuration.mounts_to_skip,
            exclude_mounts=[*temporary, *also_excluded],
            unusable_excludes="report",
        )
        for _, why in plan.unusable_excludes:
            self.log.warning(f"MountsToSkip: {why}; the pattern is ignored")
        for unreadable in plan.unreadable_mounts:
            self.log.warning(f"some mounts are not known: {unreadable.path}: {unreadable.why}")
        if self.freeze_is_unwanted_by is not None:
            self.log.warning(
                f"nothing is frozen, because `{self.freeze_is_unwanted_by}` sets fsFreezeEnabled to false: "
                "the snapshots are crash consistent at best"
            )
            plan = plan.without_filesystems()
        names = ", ".join(f"`{filesystem.mount_point}`" for filesystem in plan.filesystems)
        self.log.info(f"to freeze: {names or 'nothing'}")
        return plan

    def lock(self) -> contextlib.AbstractContextManager[object]:
        """Takes the lock that the programs of Azure Backup share.

        If there is no lock file and it cannot be created, for example on a full disk, the freeze goes on
        without it: most likely no other program holds it. The engine's own lock, in ``/run``, still keeps two
        runs apart.

        Blocking: the limit of the lock.

        Raises:
            LockHeldError: another process still held it at the end of the wait.
            LockUnavailableError: another program may hold it, and it cannot be taken.
            KeyboardInterrupt: a signal ended the wait.
        """
        try:
            return SafeFreezeLock(give_up=lambda: bool(self.interruptions.noted))
        except LockHeldError:
            self.interruptions.obey()
            raise
        except LockUnavailableError as error:
            if not error.is_missing:
                raise
            self.log.warning(f"{error}; freezing without it: most likely no other program holds it")
            return contextlib.nullcontext()

    def prepare(
        self,
        plan: Plan,
        *,
        blobs: Sequence[str] = (),
        metadata: dict[str, str] | None = None,
        blob_metadata: Sequence[dict[str, str]] = (),
        host_call: HostCall | None = None,
        proxy: str | None = None,
        quiescers: Sequence[Application] = (),
    ) -> Session:
        """Prepares a run. Waits while another run is under way, and thaws what a killed run left frozen.

        Blocking: `ANOTHER_RUN_LIMIT_SECONDS`, and the time for connecting.

        Raises:
            PrepareError: the run cannot be prepared. Nothing is frozen.
            KeyboardInterrupt: a signal ended the wait.
        """
        until = time.monotonic() + ANOTHER_RUN_LIMIT_SECONDS
        has_thawed = False
        while True:
            try:
                session = vmsnapshot.prepare(
                    plan,
                    blobs,
                    metadata=metadata,
                    blob_metadata=blob_metadata,
                    host_call=host_call,
                    # One bad disk must not stop the others, and the clock of this VM must not judge a SAS.
                    unusable_blobs="report",
                    thaw_timeout=self.configuration.thaw_timeout_seconds,
                    call_timeout=STORAGE_CALL_LIMIT_SECONDS,
                    connect_timeout=STORAGE_CALL_LIMIT_SECONDS,
                    proxy=proxy,
                    # The predecessor used no proxy, so it backed up VMs whose proxy is down.
                    unusable_proxy="direct",
                    progress=self._on_phase,
                    quiescers=quiescers,
                )
            except PrepareError as error:
                if error.kind == "left-frozen" and not has_thawed:
                    has_thawed = True
                    thaw_leftovers(self.log)
                elif error.kind == "another-run" and time.monotonic() < until:
                    # Runs of the command line and of the API do not take the lock.
                    self.interruptions.obey()
                    time.sleep(_RETRY_SECONDS)
                else:
                    raise
            else:
                for warning in session.warnings:
                    self.log.warning(warning)
                return session

    def run(self, session: Session) -> Report:
        """Runs a prepared session, and logs what happened.

        The log is suspended meanwhile. It stays suspended if not everything is thawed, because the next write
        to a frozen disk does not return before its thaw, and the blobs must be written first.
        """
        known = len(session.warnings)
        self.log.suspend(discard=self.configuration.discard_lines_while_frozen)
        try:
            report = session.run()
        except BaseException:
            # Only before the freeze. Afterwards the engine returns a report.
            self.log.resume()
            raise
        for warning in session.warnings[known:]:
            self.log.warning(warning)
        for event in report.timeline:
            words = " ".join((_EVENT_WORDS[event.event], event.subject or "")).rstrip()
            detail = f": {event.detail}" if event.detail else ""
            self.log.info(f"{event.at_ms:+.3f} ms {words}{detail}")
        self.log.info(f"run {report.run_id}: window {report.window_ms or 0.0:.3f} ms")
        for item in report.filesystems:
            if item.error:
                self.log.warning(f"`{item.mount_point}`: {item.outcome}: {item.error}")
        if report.freeze_doubt and report.freeze_doubt_code != "nothing-frozen":
            self.log.error(f"the freeze is in doubt: {report.freeze_doubt}")
        for application in report.applications:
            times = (
                f"waited {application.lock_wait_ms or 0.0:.3f} ms, held {application.held_ms or 0.0:.3f} ms"
            )
            text = f"application `{application.name}`: {application.outcome}, {times}"
            if application.error is None:
                self.log.info(text)
            else:
                self.log.warning(redacted(f"{text}: {application.error}"))
        for blob in report.blobs:
            if blob.outcome == "created" and blob.message is not None:
                self.log.warning(redacted(f"the snapshot of `{blob.uri}` was created, but {blob.message}"))
        if report.all_thawed:
            self.log.resume()
        else:
            self.log.error("not everything is thawed: run `bin/handler thaw` in the extension's directory")
        return report

    def _on_phase(self, phase: Phase) -> None:
        if phase == "freeze":
            self.interruptions.hold()
