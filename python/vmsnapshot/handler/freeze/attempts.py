"""One freeze with its calls: what the engine receives, and what its report means to Azure Backup.

Everything that an attempt needs is created before its freeze. Between the freeze and the thaw only the engine
runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from vmsnapshot import _native
from vmsnapshot.errors import PlanError, PrepareError
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.lock import LockHeldError, LockUnavailableError, SafeFreezeLock
from vmsnapshot.handler.network.connections import Connections
from vmsnapshot.handler.network.guest import blob_items
from vmsnapshot.handler.network.host import PreSnapshot, do_snapshot_call, read_do_snapshot_answer
from vmsnapshot.handler.report.outcome import (
    Attempt,
    FreezeResult,
    Outcome,
    Path,
    failed,
    may_be_crash_consistent,
)
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.report.telemetry import Telemetry, duration_text
from vmsnapshot.handler.secret import redacted
from vmsnapshot.handler.settings.wire import Settings

# Codes of `prepare` if no server or no URI can be used. Every other code is about the freeze.
_UNREACHABLE_CODES = frozenset(
    {
        "no-trust-roots",
        "tls-configuration",
        "resolve-failed",
        "connect-failed",
        "connect-timeout",
        "tls-failed",
        "proxy-failed",
        "bad-request",
        "bad-host-call",
        "bad-uri",
        "unsigned-uri",
        "duplicate-blob",
    }
)
_OPEN_CODES = frozenset({"open-failed", "mount-changed", "mount-vanished"})

# The result per doubt about the freeze. Every other doubt is about the thaw.
_FREEZE_RESULTS = {
    None: FreezeResult.HELD,
    "nothing-frozen": FreezeResult.NOT_WANTED,
    "freeze-failed": FreezeResult.FAILED,
    "frozen-by-another": FreezeResult.FAILED,
    "freeze-late": FreezeResult.TIMED_OUT,
    "freeze-hung": FreezeResult.TIMED_OUT,
}

_DEADLINE_CODES = frozenset({"watchdog-fired", "thawed-by-watchdog"})


class EndedEarlyError(Exception):
    """The job ends without a snapshot. `outcome` is its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


@dataclass(frozen=True)
class Calls:
    """What the engine sends in the window of an attempt: one request per blob, or one call to the host."""

    blobs: tuple[str, ...] = ()
    blob_metadata: tuple[dict[str, str], ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    proxy: str | None = None
    host_call: _native.HostCall | None = None


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
        before_freeze: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._freezing = freezing
        self._interruptions = freezing.interruptions
        self._log = freezing.log
        self._connections = connections
        self._telemetry = telemetry
        self._before_freeze = before_freeze

    def by_guest(self, encryption: Sequence[str | None], *, is_fallback_of_host: bool = False) -> Attempt:
        """Takes a snapshot of every blob. `encryption` has the encryption settings per blob, or is empty."""
        self._telemetry.set("snapshotCreator", Path.GUEST.value)
        settings = self._settings
        if not settings.blobs:
            self._log.error("the job names no blobs, so the guest cannot take a snapshot")
            return Attempt(Path.GUEST, FreezeResult.NOT_TRIED, is_fallback_of_host=is_fallback_of_host)

        def attempt(freeze: FreezeResult, items: tuple[SnapshotItem, ...] = ()) -> Attempt:
            return Attempt(Path.GUEST, freeze, items, is_fallback_of_host=is_fallback_of_host)

        try:
            freeze, report = self._run(self._guest_calls(encryption))
        except _UnreachableError as error:
            self._log.error(redacted(error))
            # Without a message, as for every call without an answer. The service expects that.
            failed_items = (SnapshotItem(False, blob_uri=blob.without_query) for blob in settings.blobs)
            return attempt(FreezeResult.NOT_TRIED, tuple(failed_items))
        if report is None:
            return attempt(freeze)
        # With the name from the settings, because the engine has none for a disk with a bad URI.
        items = (
            replace(item, blob_uri=blob.without_query)
            for item, blob in zip(blob_items(report.blobs), settings.blobs)
        )
        return attempt(freeze, tuple(items))

    def by_host(self, pre_snapshot: PreSnapshot) -> Attempt:
        """Lets the host take the snapshots of all disks in one call."""
        self._telemetry.set("snapshotCreator", Path.HOST.value)
        uri, headers, body = do_snapshot_call(
            self._settings, pre=pre_snapshot, address=self._connections.host_address
        )
        call = _native.HostCall(uri, headers=headers, body=body)
        try:
            freeze, report = self._run(Calls(host_call=call))
        except _UnreachableError as error:
            self._log.error(redacted(error))
            freeze, report = FreezeResult.NOT_TRIED, None
            answer = read_do_snapshot_answer(None, b"")
        else:
            if report is None or report.host_call is None or report.host_call.outcome == "not-sent":
                return Attempt(Path.HOST, freeze, pre_snapshot_was_ok=pre_snapshot.is_ok)
            answer = read_do_snapshot_answer(report.host_call.http_status, report.host_call.body)
        if answer.error:
            self._log.error(f"DoSnapshot: {answer.error}")
        self._telemetry.set("hostStatusCodeDoSnapshot", str(answer.telemetry_status))
        return Attempt(
            Path.HOST,
            freeze,
            answer.items,
            host_number=answer.telemetry_status,
            pre_snapshot_was_ok=pre_snapshot.is_ok,
        )

    def _guest_calls(self, encryption: Sequence[str | None]) -> Calls:
        settings = self._settings
        proxies = {self._connections.proxies.for_uri(blob) for blob in settings.blobs}
        if len(proxies) > 1:
            raise _UnreachableError(
                "the configuration names different proxies for different disks, and a run uses one for all"
            )
        return Calls(
            blobs=tuple(blob.expose() for blob in settings.blobs),
            metadata={pair.key: _header_text(pair.value) for pair in settings.backup_metadata},
            blob_metadata=tuple({"DiskEncryptionSettings": text} if text else {} for text in encryption),
            proxy=proxies.pop(),
        )

    def _run(self, calls: Calls) -> tuple[FreezeResult, _native.Report | None]:
        """Freezes, calls and thaws. If the freeze fails and the job allows it, calls without a freeze."""
        freeze, report = self._run_frozen(calls)
        if freeze.code is None:
            return freeze, report
        is_allowed = may_be_crash_consistent(self._settings)
        # No second run while something is still frozen, or after a signal.
        if not is_allowed or self._log.is_suspended or self._interruptions.noted:
            return freeze, None
        self._log.warning("the freeze failed; the job allows a crash-consistent snapshot")
        try:
            with self._prepare(_native.plan().without_filesystems(), calls) as session:
                self._before_freeze()
                return freeze, self._freezing.run(session)
        except (PlanError, PrepareError) as error:
            self._log.error(f"could not prepare a snapshot without a freeze: {redacted(error)}")
            return freeze, None

    def _run_frozen(self, calls: Calls) -> tuple[FreezeResult, _native.Report | None]:
        try:
            with contextlib.ExitStack() as stack:
                plan = self._freezing.plan()
                if plan.filesystems:
                    stack.enter_context(SafeFreezeLock(give_up=lambda: bool(self._interruptions.noted)))
                session = stack.enter_context(self._prepare(plan, calls))
                self._before_freeze()
                report = self._freezing.run(session)
        except (LockHeldError, LockUnavailableError) as error:
            self._log.error(str(error))
            return FreezeResult.FAILED, None
        except PlanError as error:
            self._log.error(f"could not plan what to freeze: {error}")
            return FreezeResult.FAILED, None
        except PrepareError as error:
            self._log.error(f"could not prepare the freeze: {redacted(error)}")
            return _result_of_error(error), None
        self._tell(report)
        return _freeze_result(report), report

    def _prepare(self, plan: _native.Plan, calls: Calls) -> _native.Session:
        try:
            return self._freezing.prepare(
                plan,
                blobs=calls.blobs,
                metadata=calls.metadata,
                blob_metadata=calls.blob_metadata,
                host_call=calls.host_call,
                proxy=calls.proxy,
            )
        except PrepareError as error:
            if error.code in _UNREACHABLE_CODES:
                raise _UnreachableError(str(error)) from None
            if error.code == "bad-metadata":
                raise EndedEarlyError(failed(Code.PARAMETERS, f"{redacted(error)} ")) from None
            if error.code == "no-watchdog":
                # The contract's case of a missing freeze helper.
                self._log.error(redacted(error))
                name = Code.ENGINE_NOT_FOUND.shown_as
                raise EndedEarlyError(
                    failed(Code.ENGINE_NOT_FOUND, f"{redacted(error)} StatusCode.{name},")
                ) from None
            raise

    def _tell(self, report: _native.Report) -> None:
        """Adds the times of the window to the telemetry."""
        freezes_ms = [item.freeze_ms for item in report.filesystems if item.freeze_ms is not None]
        freeze_ms = max(freezes_ms, default=0.0)
        window_ms = report.window_ms or 0.0
        self._telemetry.set("FreezeTime", duration_text(freeze_ms / 1000))
        last_call_ms = max(
            (event.at_ms for event in report.timeline if event.event == "request ended"), default=freeze_ms
        )
        self._telemetry.set("ThawTime", duration_text(max(0.0, window_ms - last_call_ms) / 1000))
        self._telemetry.set("snapshotTimeTaken", duration_text(max(0.0, window_ms - freeze_ms) / 1000))


class _UnreachableError(Exception):
    """Nothing was frozen, because no service could be reached that takes a snapshot."""


def _result_of_error(error: PrepareError) -> FreezeResult:
    return FreezeResult.UNABLE_TO_OPEN if error.code in _OPEN_CODES else FreezeResult.FAILED


def _freeze_result(report: _native.Report) -> FreezeResult:
    code = report.freeze_doubt_code
    result = _FREEZE_RESULTS.get(code, FreezeResult.BROKEN)
    host_call = report.host_call
    was_sent = any(blob.attempts for blob in report.blobs) or (host_call is not None and host_call.attempts)
    if result is not FreezeResult.BROKEN or was_sent:
        return result
    # Nothing was sent, so the thaw was not too late. Either the deadline passed before everything was frozen,
    # or the window or its watchdog failed.
    return FreezeResult.TIMED_OUT if code in _DEADLINE_CODES else FreezeResult.FAILED


def _header_text(value: Any) -> str:
    """Returns a metadata value as the text of a header."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
