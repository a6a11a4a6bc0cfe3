"""What a job came to: from the freezes and the disks' items to the codes that Azure Backup decides by.

A pure function of what happened; the rules are those of chapters 3.6, 5.2, 7.5 and 7.6 of the contract, with
its INTENT values. Nothing here sends, waits or writes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.settings.wire import Settings

RATE_EXCEEDED_TEXT = "The rate of snapshot blob calls is exceeded"
LIMIT_REACHED_TEXT = "The snapshot count against this blob has been exceeded"
TOO_LATE_MESSAGE = "CRP timeout limit has reached, will not take snapshot."
# What DoSnapshot's telemetry number says when the host answered 500 without its own error document.
HOST_SERVER_ERROR_NUMBER = 556


class FreezeResult(enum.Enum):
    """What became of the freeze of one attempt."""

    HELD = "held"
    """Everything was frozen by us from before the first call until after the last answer."""
    NOT_WANTED = "not-wanted"
    """There was nothing to freeze, or the job was not to freeze."""
    NOT_TRIED = "not-tried"
    """The attempt ended before its freeze: no blobs, or a server that could not be reached."""
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    UNABLE_TO_OPEN = "unable-to-open"
    BROKEN = "broken"
    """It held at first; the thaw came too late, failed, or was somebody else's: not consistent."""

    @property
    def code(self) -> Code | None:
        """The code of a freeze that failed; none if it did not."""
        return _FREEZE_CODES.get(self)


_FREEZE_CODES = {
    FreezeResult.FAILED: Code.FREEZE_FAILED,
    FreezeResult.TIMED_OUT: Code.FREEZE_TIMEOUT,
    FreezeResult.UNABLE_TO_OPEN: Code.UNABLE_TO_OPEN_MOUNT,
}


class Path(enum.Enum):
    """Who took the snapshots; values are telemetry's ``snapshotCreator``."""

    GUEST = "guestExtension"
    HOST = "backupHostService"


@dataclass(frozen=True)
class Attempt:
    """One freeze and the calls made in it."""

    path: Path
    freeze: FreezeResult
    items: tuple[SnapshotItem, ...] = ()
    """One a disk, also for those that failed; empty when no result exists."""
    is_fallback_of_host: bool = False
    """The guest's turn in firstHostThenGuest, because PreSnapshot was not OK."""
    host_number: int | None = None
    """``hostStatusCodeDoSnapshot``."""
    pre_snapshot_was_ok: bool = False

    @property
    def has_all_failed(self) -> bool:
        """Whether not one snapshot exists."""
        return not any(item.succeeded for item in self.items)


@dataclass(frozen=True)
class Outcome:
    """What is reported."""

    is_success: bool
    run_code: Code
    ext_code: Code
    message: str = ""
    items: tuple[SnapshotItem, ...] | None = None
    """None where no attempt was made."""
    is_crash_consistent: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether nothing else follows."""
        return self.run_code is not Code.TRANSITIONING


TRANSITIONING = Outcome(
    is_success=True,
    run_code=Code.TRANSITIONING,
    ext_code=Code.SUCCESS,
    message="Transitioning state in extension",
)
INSTALLED = Outcome(
    is_success=True, run_code=Code.SUCCESS, ext_code=Code.SUCCESS, message="Install Succeeded"
)
ALREADY_PROCESSED = Outcome(
    is_success=True,
    run_code=Code.ALREADY_PROCESSED,
    ext_code=Code.ALREADY_PROCESSED,
    message=f"Task Id already processed StatusCode.{Code.ALREADY_PROCESSED.shown_as},",
)
TOO_LATE = Outcome(is_success=False, run_code=Code.TOO_LATE, ext_code=Code.TOO_LATE, message=TOO_LATE_MESSAGE)
# Too late only after everything was prepared: an attempt without a result.
TOO_LATE_AFTER_PREPARATION = Outcome(
    is_success=False, run_code=Code.TOO_LATE, ext_code=Code.TOO_LATE, items=()
)


def failed(code: Code, message: str) -> Outcome:
    """A failure without any attempt at a snapshot."""
    return Outcome(is_success=False, run_code=code, ext_code=code, message=message)


KILLED = failed(Code.ERROR, "Enable failed. The process of the job was ended before it could report ")
BROKEN = failed(Code.ERROR, "Enable failed. The process of the job failed ")
STOPPED = failed(Code.ERROR, "Enable failed. The job was ended by disable or uninstall ")
CANNOT_START = failed(Code.ERROR, "Failed to call the daemon ")


def outcome_of(attempt: Attempt, *, may_be_crash_consistent: bool) -> Outcome:
    """Judges the attempt that counts: the last one."""
    outcome = _judge(attempt)
    if outcome.is_success or not may_be_crash_consistent or attempt.freeze is FreezeResult.NOT_TRIED:
        return outcome
    if len(attempt.items) != 1 or attempt.has_all_failed:
        return outcome
    # The freeze failed and its code stays known, or it held and the thaw was late.
    freeze_code = attempt.freeze.code
    return replace(
        outcome,
        is_success=True,
        run_code=Code.SUCCESS,
        ext_code=Code.SUCCESS if freeze_code is None else _freeze_ext_code(attempt, freeze_code),
        is_crash_consistent=True,
    )


def may_be_crash_consistent(settings: Settings) -> bool:
    """Whether the job allows a crash-consistent snapshot where the freeze fails (contract 7.6)."""
    custom = settings.custom
    return (
        custom.is_managed_vm
        and custom.can_take_crash_consistent_snapshot is True
        and (custom.backup_retry_count or 0) > 0
        and len(settings.disks.luns) == 1
    )


def _judge(attempt: Attempt) -> Outcome:
    items = attempt.items
    freeze_code = attempt.freeze.code
    if freeze_code is not None:
        return Outcome(False, freeze_code, _freeze_ext_code(attempt, freeze_code), items=items)
    if attempt.has_all_failed:
        is_server_error = (
            attempt.host_number == HOST_SERVER_ERROR_NUMBER and attempt.pre_snapshot_was_ok and not items
        )
        code = Code.HOST_SERVER_ERROR if is_server_error else Code.SNAPSHOT_FAILED_NO_NETWORK
        return Outcome(False, code, code, items=items)
    if attempt.freeze is FreezeResult.BROKEN:
        ext_code = Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK if attempt.is_fallback_of_host else Code.ERROR
        return Outcome(False, Code.ERROR, ext_code, items=items)
    if all(item.succeeded for item in items):
        return Outcome(True, Code.SUCCESS, Code.SUCCESS, items=items)
    code_of_text = _code_of_texts(items)
    if code_of_text is not None:
        return Outcome(False, code_of_text, code_of_text, items=items)
    return Outcome(
        False, Code.SNAPSHOT_FAILED_NO_NETWORK, Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK, items=items
    )


def _freeze_ext_code(attempt: Attempt, freeze_code: Code) -> Code:
    return Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK if attempt.is_fallback_of_host else freeze_code


def _code_of_texts(items: Sequence[SnapshotItem]) -> Code | None:
    """Looks for the service's two sentences, in item order; the first hit counts."""
    for item in items:
        message = item.error_message or ""
        if RATE_EXCEEDED_TEXT in message:
            return Code.SNAPSHOT_RATE_EXCEEDED
        if LIMIT_REACHED_TEXT in message:
            return Code.SNAPSHOT_LIMIT_REACHED
    return None
