"""One freeze with its calls: what the engine receives, and what its report means to Azure Backup.

Everything that an attempt needs is created before its freeze. Between the freeze and the thaw only the engine
runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable

import vmsnapshot
from vmsnapshot import (
    Application,
    BlobOutcome,
    HostCall,
    Plan,
    PlanError,
    PrepareError,
    Report,
    Session,
)
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.lock import LockHeldError, LockUnavailableError
from vmsnapshot.handler.freeze.quiescing import Quiescing
from vmsnapshot.handler.network.connections import Connections
from vmsnapshot.handler.network.guest import blob_items
from vmsnapshot.handler.network.host import (
    DoSnapshotAnswer,
    PreSnapshot,
    do_snapshot_call,
    read_do_snapshot_answer,
)
from vmsnapshot.handler.report.outcome import (
    Attempt,
    FreezeResult,
    Outcome,
    Path,
    Quiescence,
    failed,
    may_be_crash_consistent,
)
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.report.telemetry import Telemetry, duration_text
from vmsnapshot.handler.secret import Secret, explained, one_line
from vmsnapshot.handler.settings.wire import Settings

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorSubject, FreezeDoubt  # noqa: TID251 (literals, for types)

# The result of a run that cannot be prepared, by the subject of the error. A code ends the job.
_UNPREPARED: dict[ErrorSubject, FreezeResult | Code] = {
    # No blob can be asked, or the host cannot: nothing could take a snapshot.
    "callee": FreezeResult.NOT_TRIED,
    "metadata": Code.PARAMETERS,
    "filesystem": FreezeResult.UNABLE_TO_OPEN,
    # The contract's case of a freeze helper that is not there.
    "watchdog": Code.ENGINE_NOT_FOUND,
    # It ends the job, see `Quiescing`.
    "application": FreezeResult.FAILED,
    "run": FreezeResult.FAILED,
}

# What the report's doubt about the freeze means if something was sent, and if nothing was. In the second case
# it is not the thaw that came too late: the deadline came before everything was frozen, or something happened
# to the window or its watchdog.
_FREEZE_RESULTS: dict[FreezeDoubt | None, tuple[FreezeResult, FreezeResult]] = {
    None: (FreezeResult.HELD, FreezeResult.HELD),
    "nothing-frozen": (FreezeResult.NOT_WANTED, FreezeResult.NOT_WANTED),
    "freeze-failed": (FreezeResult.FAILED, FreezeResult.FAILED),
    "not-freezable": (FreezeResult.FAILED, FreezeResult.FAILED),
    "not-opened": (FreezeResult.UNABLE_TO_OPEN, FreezeResult.UNABLE_TO_OPEN),
    "freeze-would-wait": (FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
    "mounts-unreadable": (FreezeResult.FAILED, FreezeResult.FAILED),
    "frozen-by-another": (FreezeResult.FAILED, FreezeResult.FAILED),
    "freeze-late": (FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
    "freeze-hung": (FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
    "thawed-by-watchdog": (FreezeResult.BROKEN, FreezeResult.TIMED_OUT),
    "watchdog-fired": (FreezeResult.BROKEN, FreezeResult.TIMED_OUT),
    "thawed-by-another": (FreezeResult.BROKEN, FreezeResult.FAILED),
    "not-thawed": (FreezeResult.BROKEN, FreezeResult.FAILED),
    "watchdog-lost": (FreezeResult.BROKEN, FreezeResult.FAILED),
    "window-broke-off": (FreezeResult.BROKEN, FreezeResult.FAILED),
    "mounted-since": (FreezeResult.BROKEN, FreezeResult.FAILED),
    "answered-late": (FreezeResult.BROKEN, FreezeResult.FAILED),
}


class EndedEarlyError(Exception):
    """The job ends without a snapshot. `outcome` is its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


@dataclass(frozen=True)
class Calls:
    """What the engine sends in the window of an attempt: one request per blob, or one call to the host."""

    # The first four may contain secrets: signatures, metadata, a password.
    blobs: tuple[str, ...] = field(default=(), repr=False)
    blob_metadata: tuple[dict[str, str], ...] = field(default=(), repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    host_call: HostCall | None = None


class Attempts:
    """Makes the attempts of one job.

    `before_freeze` is called when everything is prepared. It may end the job by raising, for example if it is
    too late.
    """

    def __init__(
        self,
        settings: Settings,
        freezing: Freezing,
        connections: Connections,
        telemetry: Telemetry,
        quiescing: Quiescing,
        before_freeze: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._freezing = freezing
        self._interruptions = freezing.interruptions
        self._log = freezing.log
        self._connections = connections
        self._telemetry = telemetry
        self._quiescing = quiescing
        self._before_freeze = before_freeze
        # What became of the applications in the present attempt.
        self._quiescence: Quiescence | None = None
        # The first thing that failed in the present attempt.
        self._cause = ""

    def by_guest(self, encryption: Sequence[str | None], *, is_fallback_of_host: bool = False) -> Attempt:
        """Takes a snapshot of every blob. `encryption` has the encryption settings per blob, or is empty."""
        self._telemetry.set("snapshotCreator", Path.GUEST.value)
        self._cause = ""
        settings = self._settings

        def attempt(freeze: FreezeResult, items: tuple[SnapshotItem, ...] = ()) -> Attempt:
            return Attempt(
                Path.GUEST,
                freeze,
                items,
                is_fallback_of_host=is_fallback_of_host,
                quiescence=self._quiescence,
                cause=self._cause,
            )

        if not settings.blobs:
            self._fail("the job names no blobs, so the guest cannot take a snapshot")
            return attempt(FreezeResult.NOT_TRIED)
        try:
            freeze, report = self._run(self._guest_calls(encryption))
        except _UnreachableError as error:
            self._fail(str(error))
            # Without a message, as for every call without an answer. The service expects that.
            failed_items = (SnapshotItem(False, blob_uri=blob.without_query) for blob in settings.blobs)
            return attempt(FreezeResult.NOT_TRIED, tuple(failed_items))
        if report is None:
            return attempt(freeze)
        self._fail_disks(report)
        # A blob that the job names twice has one snapshot, and both entries report it.
        items = dict(zip(self._distinct_blobs(), blob_items(report.blobs)))
        # With the name from the settings, because the engine has none for a disk with a bad URI.
        return attempt(
            freeze,
            tuple(replace(items[uri.blob], blob_uri=uri.without_query) for uri in settings.blobs),
        )

    def by_host(self, pre_snapshot: PreSnapshot) -> Attempt:
        """Lets the host take the snapshots of all disks in one call."""
        self._telemetry.set("snapshotCreator", Path.HOST.value)
        self._cause = ""
        try:
            freeze, report = self._run(self._host_calls(pre_snapshot))
        except _UnreachableError as error:
            self._fail(str(error))
            freeze, report = FreezeResult.NOT_TRIED, None
            answer = read_do_snapshot_answer(None, b"")
        else:
            if report is None or report.host_call is None or report.host_call.outcome == "not-sent":
                if report is not None and freeze.code is None:
                    self._fail(report.why or "the host was not asked for the snapshots")
                return Attempt(
                    Path.HOST,
                    freeze,
                    pre_snapshot_was_ok=pre_snapshot.is_ok,
                    quiescence=self._quiescence,
                    cause=self._cause,
                )
            call = report.host_call
            answer = read_do_snapshot_answer(call.http_status, call.body)
            if call.http_status is None and call.message:
                self._fail(f"DoSnapshot: {call.message}")
        why = _why_not_all(answer)
        if why is not None:
            self._fail(f"DoSnapshot: {why}")
        self._telemetry.set("hostStatusCodeDoSnapshot", str(answer.telemetry_status))
        return Attempt(
            Path.HOST,
            freeze,
            answer.items,
            host_number=answer.telemetry_status,
            pre_snapshot_was_ok=pre_snapshot.is_ok,
            quiescence=self._quiescence,
            cause=self._cause,
        )

    def _fail(self, text: str) -> None:
        """Logs what failed, and keeps it as the cause unless something failed before it."""
        text = one_line(text)
        self._log.error(text)
        self._cause = self._cause or text

    def _fail_disks(self, report: Report) -> None:
        """Logs every failed disk. The first one is the cause, after what went wrong with the freeze.

        The code of such a job may be that of the failed disk, but a filesystem that is still frozen is more
        serious to its owner. Only an answer that came too late says less than the failed disk.
        """
        failures = [_failure_text(blob) for blob in report.blobs if blob.outcome != "created"]
        if failures and report.freeze_doubt_code == "answered-late":
            self._cause = ""
        first_cause = self._cause
        for text in failures:
            self._fail(text)
        if first_cause and failures:
            self._cause = f"{first_cause}; {one_line(failures[0])}"

    def _guest_calls(self, encryption: Sequence[str | None]) -> Calls:
        settings = self._settings
        for defect in filter(None, map(self._connections.proxies.defect_for, settings.blobs)):
            raise _UnreachableError(defect)
        proxies = {self._connections.proxies.for_uri(blob) for blob in settings.blobs}
        if len(proxies) > 1:
            raise _UnreachableError(
                "the configuration names different proxies for different disks, and a run uses one for all"
            )
        positions = self._distinct_blobs().values()
        texts = [encryption[position] for position in positions] if encryption else []
        return Calls(
            blobs=tuple(settings.blobs[position].expose() for position in positions),
            metadata={pair.key: _header_text(pair.value) for pair in settings.backup_metadata},
            blob_metadata=tuple({"DiskEncryptionSettings": text} if text else {} for text in texts),
            proxy=proxies.pop(),
        )

    def _distinct_blobs(self) -> dict[Secret, int]:
        """Returns the position of each blob's first entry in the settings. The engine refuses another."""
        first: dict[Secret, int] = {}
        for position, uri in enumerate(self._settings.blobs):
            first.setdefault(uri.blob, position)
        return first

    def _host_calls(self, pre_snapshot: PreSnapshot) -> Calls:
        uri, headers, body = do_snapshot_call(
            self._settings, pre=pre_snapshot, address=self._connections.host_address
        )
        try:
            return Calls(host_call=HostCall(uri, headers=headers, body=body))
        except PrepareError as error:
            # The address comes from the agent, and no URI can have some addresses: port 99999, for example.
            raise _UnreachableError(explained(error)) from None

    def _run(self, calls: Calls) -> tuple[FreezeResult, Report | None]:
        """Freezes, calls and thaws. If the freeze failed and the job allows it, calls without a freeze."""
        freeze, report = self._run_frozen(calls)
        # The engine makes the calls although the kernel cannot freeze one of the filesystems. Then the
        # snapshots exist: report them. A second run would take them twice.
        if freeze.code is None or (report is not None and _was_sent(report)):
            return freeze, report
        is_allowed = may_be_crash_consistent(self._settings)
        # No second run while something is still frozen, or after a signal.
        if not is_allowed or self._log.is_suspended or self._interruptions.noted:
            return freeze, None
        self._log.warning("the freeze failed; the job allows a crash-consistent snapshot")
        try:
            with self._prepare(vmsnapshot.plan().without_filesystems(), calls) as session:
                self._before_freeze()
                return freeze, self._run_session(session)
        except (PlanError, _UnpreparedError) as error:
            self._fail(f"could not prepare a snapshot without a freeze: {error}")
            return freeze, None

    def _run_frozen(self, calls: Calls) -> tuple[FreezeResult, Report | None]:
        try:
            with contextlib.ExitStack() as stack:
                plan = self._freezing.plan(vmsnapshot.machine())
                if plan.filesystems:
                    stack.enter_context(self._freezing.lock())
                session = stack.enter_context(self._prepare(plan, calls, self._quiescing.quiescers))
                self._before_freeze()
                report = self._run_session(session)
        except (LockHeldError, LockUnavailableError) as error:
            self._fail(explained(error))
            return FreezeResult.FAILED, None
        except PlanError as error:
            self._fail(f"could not plan what to freeze: {explained(error)}")
            return FreezeResult.FAILED, None
        except _UnpreparedError as error:
            self._fail(f"could not prepare the freeze: {error}")
            return error.freeze, None
        self._tell(report)
        self._quiescence = self._quiescing.of_run(report.applications)
        freeze = _freeze_result(report)
        if freeze.code is not None or freeze is FreezeResult.BROKEN:
            # `Freezing.run` has logged it. Kept before the second run of a job that may be crash consistent.
            self._cause = one_line(report.freeze_doubt or "")
        return freeze, report

    def _prepare(self, plan: Plan, calls: Calls, quiescers: Sequence[Application] = ()) -> Session:
        try:
            return self._freezing.prepare(
                plan,
                blobs=calls.blobs,
                metadata=calls.metadata,
                blob_metadata=calls.blob_metadata,
                host_call=calls.host_call,
                proxy=calls.proxy,
                quiescers=quiescers,
            )
        except PrepareError as error:
            raise self._meaning_of(error) from None

    def _run_session(self, session: Session) -> Report:
        try:
            return self._freezing.run(session)
        except PrepareError as error:
            # Before the freeze: the engine looks at the mounts again, and may have to prepare again.
            raise self._meaning_of(error) from None

    def _meaning_of(self, error: PrepareError) -> Exception:
        """Returns what the error of a run that has frozen nothing means to the attempt or the job."""
        if error.subject == "application":
            return EndedEarlyError(self._quiescing.of_error(error))
        result = _UNPREPARED[error.subject]
        if result is FreezeResult.NOT_TRIED:
            return _UnreachableError(explained(error))
        if isinstance(result, FreezeResult):
            return _UnpreparedError(explained(error), result)
        message = f"{explained(error)} "
        if result is Code.ENGINE_NOT_FOUND:
            message += f"StatusCode.{result.shown_as},"
        return EndedEarlyError(failed(result, message))

    def _tell(self, report: Report) -> None:
        """Puts the window into the telemetry."""
        freezes_ms = [item.freeze_ms for item in report.filesystems if item.freeze_ms is not None]
        freeze_ms = max(freezes_ms, default=0.0)
        window_ms = report.window_ms or 0.0
        self._telemetry.set("FreezeTime", duration_text(freeze_ms / 1000))
        # The last call may have ended after the thaw.
        thaw_called_ms = min(
            (event.at_ms for event in report.timeline if event.event == "thaw-called"), default=window_ms
        )
        self._telemetry.set("ThawTime", duration_text(max(0.0, window_ms - thaw_called_ms) / 1000))
        self._telemetry.set("snapshotTimeTaken", duration_text(max(0.0, window_ms - freeze_ms) / 1000))


class _UnreachableError(Exception):
    """No service that takes snapshots could be reached, so nothing was frozen."""


class _UnpreparedError(Exception):
    """The run could not be prepared; nothing was frozen. `freeze` is the attempt's result."""

    def __init__(self, message: str, freeze: FreezeResult) -> None:
        super().__init__(message)
        self.freeze = freeze


def _failure_text(blob: BlobOutcome) -> str:
    """Returns which disk has no known snapshot, and what the service answered or which step failed."""
    text = blob.message or blob.error_code or "no reason was given"
    if blob.http_status is not None:
        text = f"the service answered {blob.http_status} {blob.error_code or ''}: {text}"
    # An error of the connection names the blob itself.
    return text if blob.uri and f"`{blob.uri}`" in text else f"no known snapshot of `{blob.uri}`: {text}"


def _why_not_all(answer: DoSnapshotAnswer) -> str | None:
    """Returns why the host has not taken the snapshots of all disks, or `None` if it has."""
    if not answer.items:
        return answer.error or "the answer of the host names no disk"
    failed_items = [item for item in answer.items if not item.succeeded]
    if not failed_items:
        return None
    what = f"the host could not snapshot {len(failed_items)} of {len(answer.items)} disks"
    because = next((item.error_message for item in failed_items if item.error_message), None)
    return f"{what}: {because}" if because else what


def _freeze_result(report: Report) -> FreezeResult:
    if_sent, if_unsent = _FREEZE_RESULTS[report.freeze_doubt_code]
    return if_sent if _was_sent(report) else if_unsent


def _was_sent(report: Report) -> bool:
    host_call = report.host_call
    return any(blob.attempts for blob in report.blobs) or (host_call is not None and host_call.attempts > 0)


def _header_text(value: Any) -> str:
    """Returns a metadata value as the text of a header."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
