"""Calls PreSnapshot before the freeze, builds the DoSnapshot request, and reads its answer.

The host takes the snapshots of all disks in one call, DoSnapshot. The engine sends it inside the window. This
module only builds its bytes and reads the answer. PreSnapshot is sent by this module, before the window. Its
answer has the host's time, and what the host knows about the encryption of the disks. Chapter 6 of the
contract.

Requests and answers contain tokens. No message and no `repr` contains any of them.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnapshot.handler.network.causes import cause_of
from vmsnapshot.handler.report.outcome import HOST_SERVICE_NOT_RUNNING
from vmsnapshot.handler.report.snapshots import DirectDriveIdentifier, SnapshotItem
from vmsnapshot.handler.secret import Secret, redacted
from vmsnapshot.handler.settings.values import json_object
from vmsnapshot.handler.settings.wire import Pair, Settings

if TYPE_CHECKING:
    import aiohttp

    from vmsnapshot.handler.network.background import Session

HOST_DEFAULT = "168.63.129.16"
"""The address of the platform. It is the same for every Azure VM."""
HOST_VARIABLE = "AZURE_GUEST_AGENT_WIRE_PROTOCOL_ADDRESS"
"""The variable in which the agent passes another host, with or without a port."""
PRE_SNAPSHOT_PATH = "/metadata/recsvc/snapshot/presnapshot?api-version=2017-12-01"
DO_SNAPSHOT_PATH = "/metadata/recsvc/snapshot/dosnapshot?api-version=2017-12-01"
HEADERS = (
    ("Backup", "true"),
    ("Content-type", "application/json"),
    # In one word. The host expects this header and not the usual one.
    ("UserAgent", "VMSnapshot"),
)
CALL_LIMIT_SECONDS = 40.0

# Numbers that the telemetry has in place of an HTTP status, beside `HOST_SERVICE_NOT_RUNNING`.
NO_ANSWER = 555
EMPTY_ANSWER = 557
UNUSABLE_ANSWER = 558

_ANSWER_LIMIT_BYTES = 1024 * 1024
_ERROR_MESSAGE_LIMIT = 4096
_REMARK_LIMIT_CHARACTERS = 200
_PAUSE_BEFORE_RETRY_SECONDS = 0.5
# The keys that every entry of the answer to DoSnapshot has (contract 6.2). Their values may be null.
_REQUIRED_KEYS = frozenset({"isSuccessful", "snapshotUri", "errorMessage", "statusCode"})
# The beginning of the host's error document, as observed. It is the only sign that the service is running.
_ERROR_DOCUMENT = b'{ "error"'

# .NET writes seven digits of a second's fraction, and an offset where the time is not UTC.
_CREATION_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?",
    re.ASCII,
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class EncryptionDetails:
    """What the host knows about Azure Disk Encryption on this VM. DoSnapshot returns the flags unchanged."""

    is_os_disk_encrypted: Any = None
    are_data_disks_encrypted: Any = None
    settings: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PreSnapshot:
    """The host's answer to PreSnapshot, or the fact that there was none."""

    telemetry_status: int
    """The HTTP status, or `NO_ANSWER`, `HOST_SERVICE_NOT_RUNNING`, `EMPTY_ANSWER`, `UNUSABLE_ANSWER`."""
    response_time: datetime.datetime | None = None
    """The host's time in UTC, to the second. `None` unless all six fields are there and form a date."""
    encryption: EncryptionDetails | None = None
    """Only read if details were asked for."""
    error: str | None = None
    """Why the host cannot be used, for the log."""
    remarks: str = ""
    """What the host reports about itself, for the log."""

    @property
    def is_ok(self) -> bool:
        """Whether the host takes snapshots: 200 or 201 with a body."""
        return self.telemetry_status in (200, 201)


@dataclass(frozen=True)
class DoSnapshotAnswer:
    """The host's answer to DoSnapshot, or the fact that there was none."""

    telemetry_status: int
    """As in `PreSnapshot`."""
    items: tuple[SnapshotItem, ...] = ()
    """One item per entry of the answer, in its order."""
    error: str | None = None
    """Why the answer has no result for the disks, for the log. An answer that all disks failed has one."""


def host_address(environ: Mapping[str, str]) -> str:
    """Returns the address of the host as ``HOST`` or ``HOST:PORT``."""
    named = environ.get(HOST_VARIABLE, "").strip()
    # Refuse characters that would change the rest of the URI.
    return named if re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", named) else HOST_DEFAULT


async def pre_snapshot(
    session: Session,
    address: str,
    *,
    task_id: str | None,
    token: Secret,
    details: bool | None,
    limit_seconds: float = CALL_LIMIT_SECONDS,
) -> PreSnapshot:
    """Announces a snapshot to the host. Never raises.

    `details` asks what the host knows about the disks, and its value is whether the job is about encrypted
    disks. `None` does not ask. If the connection fails before an answer, the call is repeated once, as far as
    `limit_seconds` allows. It changes nothing on the host.

    Blocking: `limit_seconds` at most.
    """
    import asyncio

    import aiohttp

    body = _pre_snapshot_body(task_id, token, details)
    try:
        status, answer = await _post(session(), f"http://{address}{PRE_SNAPSHOT_PATH}", body, limit_seconds)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        return PreSnapshot(NO_ANSWER, error=f"the host did not answer: {cause_of(error)}")
    return _read_pre_snapshot_answer(status, answer, details=details)


def do_snapshot_call(
    settings: Settings, *, pre: PreSnapshot | None, address: str
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Returns URI, headers and body of DoSnapshot, for the engine. The body contains the token of the job.

    `pre` has what the host knows about encryption. The host expects it back if the job is about encrypted
    disks.
    """
    pairs = list(settings.dynamic_configs.pairs())
    metadata = list(settings.backup_metadata)
    encryption = pre.encryption if pre and settings.disks.azure_disk_encryption else None
    if encryption is not None:
        pairs.append(Pair("isOsDiskADEEncrypted", encryption.is_os_disk_encrypted))
        pairs.append(Pair("areDataDisksADEEncrypted", encryption.are_data_disks_encrypted))
        if encryption.settings:
            metadata.append(Pair("DiskEncryptionSettings", encryption.settings))
    document: dict[str, Any] = {
        "taskId": settings.host_task_id,
        "diskIds": list(settings.disks.luns),
        "settings": _wire_pairs(pairs),
        "snapshotTaskToken": settings.snapshot_task_token.expose(),
        "snapshotMetadata": _wire_pairs(metadata),
    }
    if settings.disks.instant_access_duration_minutes is not None:
        document["instantAccessDurationMinutes"] = settings.disks.instant_access_duration_minutes
    return f"http://{address}{DO_SNAPSHOT_PATH}", list(HEADERS), json.dumps(document).encode()


def read_do_snapshot_answer(http_status: int | None, body: bytes) -> DoSnapshotAnswer:
    """Reads the host's answer to DoSnapshot. `http_status` is `None` if there was no answer.

    An entry that cannot be read becomes a failed disk with a message, so that no disk is dropped. If no entry
    has the required keys, it is not an answer to DoSnapshot, and there are no items. ``isSuccessful`` is
    passed on unchanged, as a string or as a JSON boolean.
    """
    telemetry_status = _telemetry_status(http_status, body)
    if telemetry_status not in (200, 201):
        return DoSnapshotAnswer(telemetry_status, error=_why_unusable(telemetry_status))
    document = json_object(body)
    entries = document.get("snapshotInfo") if document is not None else None
    if not isinstance(entries, list):
        # Not `UNUSABLE_ANSWER`: the reference reports the status of every answer that has a body.
        return DoSnapshotAnswer(telemetry_status, error=_why_unusable(UNUSABLE_ANSWER))
    if entries and not any(_has_required_keys(entry) for entry in entries):
        return DoSnapshotAnswer(telemetry_status, error="no entry of the host's answer has the required keys")
    return DoSnapshotAnswer(telemetry_status, tuple(map(_item, entries)))


async def _post(
    session: aiohttp.ClientSession, uri: str, body: bytes, limit_seconds: float
) -> tuple[int, bytes]:
    import asyncio

    import aiohttp

    give_up_at = time.monotonic() + limit_seconds
    try:
        return await exchange(session, "POST", uri, HEADERS, body, limit_seconds)
    except aiohttp.ClientConnectionError as error:
        left_seconds = give_up_at - time.monotonic() - _PAUSE_BEFORE_RETRY_SECONDS
        if left_seconds <= 0 or isinstance(error, asyncio.TimeoutError):
            raise
    await asyncio.sleep(_PAUSE_BEFORE_RETRY_SECONDS)
    return await exchange(session, "POST", uri, HEADERS, body, left_seconds)


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    uri: str,
    headers: Iterable[tuple[str, str]],
    body: bytes | None,
    limit_seconds: float,
) -> tuple[int, bytes]:
    """Sends one request to the host, without optional headers, and returns the HTTP status and the answer.

    An answer of more than 1 MiB is cut. It is then not valid JSON, and counts as unusable.

    Raises:
        aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError: the host did not answer.
    """
    import aiohttp

    async with session.request(
        method,
        uri,
        data=body,
        headers=list(headers),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(total=limit_seconds),
    ) as response:
        answer = b""
        async for chunk in response.content.iter_chunked(64 * 1024):
            answer += chunk
            if len(answer) >= _ANSWER_LIMIT_BYTES:
                break
        return response.status, answer


def _pre_snapshot_body(task_id: str | None, token: Secret, details: bool | None) -> bytes:
    document: dict[str, Any] = {"taskId": task_id, "snapshotTaskToken": token.expose()}
    if details is not None:
        document["preSnapshotSettings"] = _wire_pairs([Pair("isVMADEEnabled", details)])
    return json.dumps(document).encode()


def _read_pre_snapshot_answer(http_status: int, body: bytes, *, details: bool | None) -> PreSnapshot:
    telemetry_status = _telemetry_status(http_status, body)
    if telemetry_status not in (200, 201):
        return PreSnapshot(telemetry_status, error=_why_unusable(telemetry_status))
    document = json_object(body)
    if document is None:
        # A status alone is enough, unless the host has to say how the disks are encrypted.
        return (
            PreSnapshot(UNUSABLE_ANSWER, error=_why_unusable(UNUSABLE_ANSWER))
            if details
            else PreSnapshot(telemetry_status)
        )
    return PreSnapshot(
        telemetry_status,
        response_time=_response_time(document.get("responseTime")),
        encryption=_encryption(document) if details is not None else None,
        remarks=_remarks(document),
    )


def _remarks(document: Mapping[str, Any]) -> str:
    """Returns the three fields that the contract logs (6.2), if they are short strings or integers."""
    remarks = []
    for key in ("bhsVersion", "nodeId", "result"):
        value = document.get(key)
        if isinstance(value, (str, int)) and len(str(value)) <= _REMARK_LIMIT_CHARACTERS:
            remarks.append(f"{key} {value}")
    return redacted(", ".join(remarks))


def _telemetry_status(http_status: int | None, body: bytes) -> int:
    if http_status is None:
        return NO_ANSWER
    if http_status == 500 and not body.startswith(_ERROR_DOCUMENT):
        return HOST_SERVICE_NOT_RUNNING
    if http_status in (200, 201) and not body:
        return EMPTY_ANSWER
    return http_status


def _why_unusable(telemetry_status: int) -> str:
    return {
        NO_ANSWER: "the host did not answer",
        HOST_SERVICE_NOT_RUNNING: "the host answered 500: its backup service is not running",
        EMPTY_ANSWER: "the host's answer is empty",
        UNUSABLE_ANSWER: "the host's answer is not the JSON that was expected",
    }.get(telemetry_status, f"the host answered {telemetry_status}")


def _response_time(fields: Any) -> datetime.datetime | None:
    if not isinstance(fields, dict):
        return None
    values = [fields.get(name) for name in ("year", "month", "day", "hour", "minute", "second")]
    if not all(type(value) is int for value in values):
        return None
    try:
        return datetime.datetime(*values, tzinfo=datetime.timezone.utc)  # type: ignore[arg-type, misc]
    except (ValueError, OverflowError):
        return None


def _encryption(document: Mapping[str, Any]) -> EncryptionDetails | None:
    names = ("isOsDiskADEEncrypted", "areDataDisksADEEncrypted", "DiskEncryptionSettings")
    if not any(name in document for name in names):
        return None
    is_os_disk_encrypted, are_data_disks_encrypted, settings = map(document.get, names)
    return EncryptionDetails(
        is_os_disk_encrypted, are_data_disks_encrypted, settings if isinstance(settings, str) else None
    )


def _wire_pairs(pairs: list[Pair]) -> list[dict[str, Any]]:
    return [{"Key": pair.key, "Value": pair.value} for pair in pairs]


def _has_required_keys(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.keys() >= _REQUIRED_KEYS


def _item(entry: Any) -> SnapshotItem:
    if not isinstance(entry, dict):
        return _unreadable("the host's entry for this disk is not a JSON object")
    if not _has_required_keys(entry):
        return _unreadable("the host's entry for this disk lacks a required key")
    is_successful = entry.get("isSuccessful")
    if not isinstance(is_successful, (bool, str)):
        return _unreadable("the host's entry for this disk has no valid isSuccessful")
    if isinstance(is_successful, str):
        # The status repeats it.
        is_successful = redacted(is_successful)
    uri = entry.get("snapshotUri")
    uri = redacted(uri) if isinstance(uri, str) and uri else None
    message = entry.get("errorMessage")
    item = SnapshotItem(
        is_successful,
        snapshot_uri=uri,
        error_message=None if message is None else redacted(message)[:_ERROR_MESSAGE_LIMIT],
        blob_uri=uri.partition("?")[0] if uri else None,
    )
    identifier = entry.get("ddSnapshotIdentifier")
    if isinstance(identifier, dict):
        return SnapshotItem(
            is_successful,
            error_message=item.error_message,
            blob_uri=uri.partition("/snapshots")[0] if uri else None,
            direct_drive=_direct_drive(identifier),
        )
    if item.succeeded and uri is None:
        return _unreadable("the host's entry for this disk names no snapshot")
    return item


def _unreadable(why: str) -> SnapshotItem:
    # A string, as the host sends it.
    return SnapshotItem("false", error_message=why)


def _direct_drive(identifier: Mapping[str, Any]) -> DirectDriveIdentifier:
    id_, token = identifier.get("id"), identifier.get("token")
    return DirectDriveIdentifier(
        created_unix_ms=_unix_ms(identifier.get("creationTime")),
        id=None if id_ is None else redacted(id_),
        token=None if token is None else str(token),
        instant_access_duration_minutes=identifier.get("instantAccessDurationMinutes"),
    )


def _unix_ms(creation_time: Any) -> int | None:
    """Reads a time of the host, truncated to milliseconds. A time without an offset is UTC."""
    found = _CREATION_TIME.fullmatch(creation_time.strip()) if isinstance(creation_time, str) else None
    if not found:
        return None
    date, clock, fraction, sign, hours, minutes = found.groups()
    try:
        instant = datetime.datetime.fromisoformat(f"{date}T{clock}+00:00")
        offset = datetime.timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    except ValueError:
        return None
    seconds = (instant - _EPOCH - (-offset if sign == "-" else offset)) // datetime.timedelta(seconds=1)
    return seconds * 1000 + int((fraction or "").ljust(3, "0")[:3])
