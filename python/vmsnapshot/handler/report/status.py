"""Renders the two status documents: the blob report, and the status file that embeds it as text.

Both are rendered together from the same data (contract, chapter 3). The service reads them with a .NET
serializer: times are ``\\/Date(ms)\\/`` in the raw text, with each slash escaped. No key is ever omitted.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.report.outcome import Outcome
from vmsnapshot.handler.report.snapshots import DirectDriveIdentifier, SnapshotItem
from vmsnapshot.handler.settings.wire import Job

# The agent truncates parts of a larger file, which destroys the embedded report.
FILE_LIMIT_CHARACTERS = 131072
# The limits to which error messages are shortened, one after another, until the file is small enough.
_MESSAGE_LIMITS_CHARACTERS = (4096, 1024, 256, 64, 0)
_TEXT_LIMIT_CHARACTERS = 4096
# For each of them, the limits of the cause. It is for people, and the log has it too. The service reads the
# messages.
_CAUSE_LIMITS_CHARACTERS = (1024, 256, 0)

_DATE = re.compile(r'"/Date\((-?\d+)\)/"')

# The telemetry that the message repeats, in this order (contract 3.3).
_TELEMETRY_IN_MESSAGE = ("snapshotCreator", "hostStatusCodePreSnapshot", "hostStatusCodeDoSnapshot")


@dataclass(frozen=True)
class StorageDetails:
    """How much data there is to back up."""

    partition_count: int = 0
    total_used_bytes: int = 0
    has_size_failed: bool = False


@dataclass(frozen=True)
class Sender:
    """The fixed part of all reports of one process."""

    handler_name: str
    schema_version: str
    machine_id: str = ""
    real_consistency_numbers: bool = False
    """Whether `snapshotConsistency` has its real value. The service expects 0 (contract 3.4)."""


@dataclass(frozen=True)
class StatusReport:
    """The content of the two documents."""

    sender: Sender
    job: Job
    outcome: Outcome
    telemetry: tuple[tuple[str, str], ...]
    """Keys and values, in the order in which the keys were first set."""
    written_at: datetime.datetime
    """UTC."""
    storage: StorageDetails = StorageDetails()


@dataclass(frozen=True)
class StatusDocuments:
    """The two texts: `blob` for the status blob, and `file` for ``<sequence number>.status``."""

    blob: str
    file: str


def render(report: StatusReport, blob_limit_bytes: int | None = None) -> StatusDocuments:
    """Renders both documents. The file is always below the agent's limit, whatever the services answered.

    `blob_limit_bytes` is the size of a small blob, or `None`. If even the shortest form is longer, the
    shortest form is returned.
    """

    def fits(documents: StatusDocuments) -> bool:
        # Both are ASCII, so characters are bytes.
        has_room = blob_limit_bytes is None or len(documents.blob) <= blob_limit_bytes
        return has_room and len(documents.file) < FILE_LIMIT_CHARACTERS

    items = report.outcome.items
    for limit in _MESSAGE_LIMITS_CHARACTERS:
        shortened = None if items is None else tuple(_shortened(item, limit) for item in items)
        for cause_limit in _CAUSE_LIMITS_CHARACTERS:
            documents = _render(_with_items(_with_cause(report, cause_limit), shortened))
            if fits(documents):
                return documents
    # Only for absurdly long settings and answers. A report with less text is better than a truncated one.
    report = replace(
        report,
        job=replace(
            report.job, task_id=_cut(report.job.task_id), start_ticks=_bounded_ticks(report.job.start_ticks)
        ),
        outcome=replace(report.outcome, message=_cut(report.outcome.message) or "", cause=""),
        telemetry=tuple((key, value[:_TEXT_LIMIT_CHARACTERS]) for key, value in report.telemetry),
    )
    kept = [] if items is None else [_shortened(item, 0) for item in items]
    while True:
        documents = _render(_with_items(report, None if items is None else tuple(kept)))
        if len(documents.file) < FILE_LIMIT_CHARACTERS or not kept:
            return documents
        del kept[len(kept) // 2 :]


def _render(report: StatusReport) -> StatusDocuments:
    state = "success" if report.outcome.is_success else "error"
    common = _common(report)
    blob = _dumps([_document(report, common, _blob_time(report.written_at), state, [], _blob_only(report))])
    substatus = [{"code": "0", "name": blob, "status": "success", "formattedMessage": None}]
    # On a V2 VM the portal shows a failed run as a success. The embedded report has the real state.
    shown = "success" if report.job.is_v2 and report.outcome.is_terminal else state
    nothing = {"telemetryData": None, "snapshotInfo": None, "vmHealthInfo": None}
    written_at = report.written_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return StatusDocuments(blob, _dumps([_document(report, common, written_at, shown, substatus, nothing)]))


def _document(
    report: StatusReport,
    common: dict[str, Any],
    written_at: str,
    state: str,
    substatus: list[dict[str, Any]],
    own: dict[str, Any],
) -> dict[str, Any]:
    return {
        "version": report.sender.schema_version,
        "timestampUTC": written_at,
        "status": {
            "name": report.sender.handler_name,
            "operation": "Enable",
            "status": state,
            "substatus": substatus,
            **common,
            "telemetryData": own["telemetryData"],
            "uniqueMachineId": report.sender.machine_id,
            "snapshotInfo": own["snapshotInfo"],
            "vmHealthInfo": own["vmHealthInfo"],
        },
    }


def _common(report: StatusReport) -> dict[str, Any]:
    outcome, storage = report.outcome, report.storage
    message = {
        "messageStr": outcome.message + _message_tail(dict(report.telemetry)),
        "snapshotConsistency": _consistency(report),
        "jobMessage": outcome.cause,
        "isSizeComputationFailed": storage.has_size_failed,
    }
    return {
        "code": str(int(outcome.run_code)),
        "taskId": report.job.task_id,
        "formattedMessage": {"lang": "en-US", "message": json.dumps(message)},
        "storageDetails": {
            "partitionCount": storage.partition_count,
            "totalUsedSizeInBytes": storage.total_used_bytes,
            "isStoragespacePresent": False,
            "isSizeComputationFailed": storage.has_size_failed,
        },
        "commandStartTimeUTCTicks": report.job.start_ticks,
    }


def _blob_only(report: StatusReport) -> dict[str, Any]:
    outcome = report.outcome
    items = None if outcome.items is None else [_item(item) for item in outcome.items]
    return {
        "telemetryData": [{"Value": value, "Key": key} for key, value in report.telemetry],
        "snapshotInfo": items,
        "vmHealthInfo": {
            "vmHealthState": outcome.ext_code.health_state,
            "vmHealthStatusCode": int(outcome.ext_code),
        },
    }


def _message_tail(telemetry: dict[str, str]) -> str:
    tail = " statusBlobUploadError=true, " if "statusBlobUploadError" in telemetry else ""
    return tail + "".join(f"{key}={telemetry[key]}, " for key in _TELEMETRY_IN_MESSAGE if key in telemetry)


def _consistency(report: StatusReport) -> int:
    if report.outcome.is_crash_consistent:
        return 3
    if not report.sender.real_consistency_numbers or not report.outcome.is_success:
        return 0
    if report.outcome.run_code is Code.APPLICATION_CONSISTENT:
        return 2
    return 1 if report.outcome.run_code is Code.SUCCESS and not report.outcome.nothing_was_frozen else 0


def _item(item: SnapshotItem) -> dict[str, Any]:
    return {
        "isSuccessful": item.is_successful,
        "snapshotUri": item.snapshot_uri,
        "errorMessage": item.error_message,
        "blobUri": item.blob_uri,
        "directDriveSnapshotIdentifier": _direct_drive(item.direct_drive),
    }


def _direct_drive(identifier: DirectDriveIdentifier | None) -> dict[str, Any] | None:
    if identifier is None:
        return None
    created = identifier.created_unix_ms
    return {
        "creationTime": None if created is None else {"DateTime": f"/Date({created})/", "OffsetMinutes": 0},
        "id": identifier.id,
        "token": identifier.token,
        "instantAccessDurationMinutes": identifier.instant_access_duration_minutes,
    }


def _blob_time(instant: datetime.datetime) -> str:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return f"/Date({(instant - epoch) // datetime.timedelta(milliseconds=1)})/"


def _dumps(document: Any) -> str:
    return _DATE.sub(r'"\\/Date(\1)\\/"', json.dumps(document))


def _with_cause(report: StatusReport, limit: int) -> StatusReport:
    return replace(report, outcome=replace(report.outcome, cause=report.outcome.cause[:limit]))


def _with_items(report: StatusReport, items: tuple[SnapshotItem, ...] | None) -> StatusReport:
    return replace(report, outcome=replace(report.outcome, items=items))


def _shortened(item: SnapshotItem, limit: int) -> SnapshotItem:
    message = item.error_message
    if message is None or len(message) <= limit:
        return item
    return replace(item, error_message=message[:limit])


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_TEXT_LIMIT_CHARACTERS]


def _bounded_ticks(ticks: Any) -> Any:
    return ticks if len(json.dumps(ticks)) <= _TEXT_LIMIT_CHARACTERS else None
