"""The outcome of a job: derives the codes for Azure Backup from the freezes and the results of the disks.

These are pure functions. The rules are those of chapters 3.6, 5.2, 7.5 and 7.6 of the contract, with its
INTENT values. Nothing here sends, waits or writes.
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
APPLICATION_CONSISTENT_MESSAGE = "Enable Succeeded with App Consistent Snapshot"
TOO_LATE_MESSAGE = "CRP timeout limit has reached, will not take snapshot."
# The telemetry number of DoSnapshot if the host answered 500 without its own error document.
HOST_SERVICE_NOT_RUNNING = 556


class FreezeResult(enum.Enum):
    """The result of the freeze of one attempt."""

    HELD = "held"
    """This run held everything frozen from before the first call until after the last answer."""
    NOT_WANTED = "not-wanted"
    """There was nothing to freeze, or the attempt was made without a freeze."""
    NOT_TRIED = "not-tried"
    """The attempt ended before its freeze: there are no blobs, or no server could be reached."""
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    UNABLE_TO_OPEN = "unable-to-open"
    BROKEN = "broken"
    """It held at first, but the thaw was too late, failed, or came from another program. Not consistent."""

    @property
    def code(self) -> Code | None:
        """The code of a failed freeze, or `None`."""
        return _FREEZE_CODES.get(self)


_FREEZE_CODES = {
    FreezeResult.FAILED: Code.FREEZE_FAILED,
    FreezeResult.TIMED_OUT: Code.FREEZE_TIMEOUT,
    FreezeResult.UNABLE_TO_OPEN: Code.UNABLE_TO_OPEN_MOUNT,
}


class Path(enum.Enum):
    """Who took the snapshots. The values are those of ``snapshotCreator`` in the telemetry."""

    GUEST = "guestExtension"
    HOST = "backupHostService"


@dataclass(frozen=True)
class Quiescence:
    """What became of holding the applications still. `code` is `None` if all of it went well."""

    code: Code | None = None
    ends_job: bool = False
    """Whether the owner wants no backup then."""
    message: str = ""
    cause: str = ""


@dataclass(frozen=True)
class Attempt:
    """One freeze and its calls."""

    path: Path
    freeze: FreezeResult
    items: tuple[SnapshotItem, ...] = ()
    """One item per disk, including failed disks. Empty if there is no result."""
    is_fallback_of_host: bool = False
    """Whether the guest took over in firstHostThenGuest, because PreSnapshot failed."""
    host_number: int | None = None
    """``hostStatusCodeDoSnapshot``."""
    pre_snapshot_was_ok: bool = False
    quiescence: Quiescence | None = None
    """`None` if no application is configured."""
    cause: str = ""
    """What failed, where and why, in a sentence. Empty if nothing failed."""

    @property
    def has_all_failed(self) -> bool:
        """Whether no snapshot exists."""
        return not any(item.succeeded for item in self.items)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job, as it is reported."""

    is_success: bool
    run_code: Code
    ext_code: Code
    message: str = ""
    items: tuple[SnapshotItem, ...] | None = None
    """`None` if no attempt was made."""
    is_crash_consistent: bool = False
    nothing_was_frozen: bool = False
    """Whether there was nothing to freeze, or the owner wanted no freeze."""
    cause: str = ""
    """``jobMessage``: why the job failed, or is only crash consistent. Empty if `message` says it.

    Contains no secret. Azure Backup decides by the codes, and expects an empty `message` in most failures.
    """

    @property
    def is_terminal(self) -> bool:
        """Whether this is the final report."""
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
# The job was too late after the preparation. This counts as an attempt without a result.
TOO_LATE_AFTER_PREPARATION = Outcome(
    is_success=False,
    run_code=Code.TOO_LATE,
    ext_code=Code.TOO_LATE,
    items=(),
    cause="the 140 minutes that a command may take had passed when everything was prepared for the freeze",
)


def failed(code: Code, message: str) -> Outcome:
    """Returns the outcome of a job that failed without an attempt at a snapshot."""
    return Outcome(is_success=False, run_code=code, ext_code=code, message=message)


def certificate_missing(problem: str) -> Outcome:
    """Returns the outcome of a job whose disks are unknown because of `problem`: a decryption that failed."""
    code = Code.CERTIFICATE_NOT_FOUND
    return replace(
        failed(code, f"unable to load certificate: {problem} StatusCode.{code.shown_as},"), items=()
    )


KILLED = failed(Code.ERROR, "Enable failed. The process of the job was ended before it could report ")
BROKEN = failed(Code.ERROR, "Enable failed. The process of the job failed ")
STOPPED = failed(Code.ERROR, "Enable failed. The job was ended by disable or uninstall ")
CANNOT_START = failed(Code.ERROR, "Failed to call the daemon ")


def outcome_of(attempt: Attempt, *, may_be_crash_consistent: bool) -> Outcome:
    """Returns the outcome of the attempt that counts, which is the last one."""
    outcome = _outcome_of_snapshots(attempt, may_be_crash_consistent=may_be_crash_consistent)
    quiescence = attempt.quiescence
    # If the snapshots failed, that is what counts.
    if quiescence is None or not outcome.is_success:
        return outcome
    if quiescence.code is None:
        if outcome.is_crash_consistent:
            return outcome
        code = Code.APPLICATION_CONSISTENT
        return replace(outcome, run_code=code, ext_code=code, message=APPLICATION_CONSISTENT_MESSAGE)
    if quiescence.ends_job:
        return replace(
            failed(quiescence.code, quiescence.message), items=outcome.items, cause=quiescence.cause
        )
    return replace(outcome, ext_code=quiescence.code, message=quiescence.message, cause=quiescence.cause)


def _outcome_of_snapshots(attempt: Attempt, *, may_be_crash_consistent: bool) -> Outcome:
    outcome = _judge(attempt)
    if not outcome.is_success:
        outcome = replace(outcome, cause=attempt.cause)
    if outcome.is_success or not may_be_crash_consistent or attempt.freeze is FreezeResult.NOT_TRIED:
        return outcome
    if len(attempt.items) != 1 or attempt.has_all_failed:
        return outcome
    # Either the freeze failed and the ext code keeps its code, or it held and the thaw was late.
    freeze_code = attempt.freeze.code
    return replace(
        outcome,
        is_success=True,
        run_code=Code.SUCCESS,
        ext_code=Code.SUCCESS if freeze_code is None else _freeze_ext_code(attempt, freeze_code),
        is_crash_consistent=True,
    )


def may_be_crash_consistent(settings: Settings) -> bool:
    """Returns whether the job allows a crash-consistent snapshot if the freeze fails (contract 7.6)."""
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
            attempt.host_number == HOST_SERVICE_NOT_RUNNING and attempt.pre_snapshot_was_ok and not items
        )
        code = Code.HOST_SERVER_ERROR if is_server_error else Code.SNAPSHOT_FAILED_NO_NETWORK
        return Outcome(False, code, code, items=items)
    # In the guest path, a thaw problem does not count once a call has failed (contract 7.5). In the reference
    # this depends on the number of disks; here it does not.
    has_failed_disk = not all(item.succeeded for item in items)
    if attempt.freeze is FreezeResult.BROKEN and not (has_failed_disk and attempt.path is Path.GUEST):
        ext_code = Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK if attempt.is_fallback_of_host else Code.ERROR
        return Outcome(False, Code.ERROR, ext_code, items=items)
    if not has_failed_disk:
        nothing_was_frozen = attempt.freeze is FreezeResult.NOT_WANTED
        return Outcome(True, Code.SUCCESS, Code.SUCCESS, items=items, nothing_was_frozen=nothing_was_frozen)
    code_of_text = _code_of_texts(items)
    if code_of_text is not None:
        return Outcome(False, code_of_text, code_of_text, items=items)
    return Outcome(
        False, Code.SNAPSHOT_FAILED_NO_NETWORK, Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK, items=items
    )


def _freeze_ext_code(attempt: Attempt, freeze_code: Code) -> Code:
    return Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK if attempt.is_fallback_of_host else freeze_code


def _code_of_texts(items: Sequence[SnapshotItem]) -> Code | None:
    """Searches the items in order for the two sentences of the service. The first match counts."""
    for item in items:
        message = item.error_message or ""
        if RATE_EXCEEDED_TEXT in message:
            return Code.SNAPSHOT_RATE_EXCEEDED
        if LIMIT_REACHED_TEXT in message:
            return Code.SNAPSHOT_LIMIT_REACHED
    return None
