"""The guest's own way to the snapshots: one request a blob, sent by the engine inside the window.

Here is what comes before and after: the encryption settings of each disk, which are to go with its snapshot,
and the report on each disk from the engine's outcomes. Chapters 3.2 and 5 of the contract.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.secret import SasUri, redacted

if TYPE_CHECKING:
    import aiohttp

    from vmsnapshot.handler.network.background import Session

ENCRYPTION_SETTINGS_HEADER = "x-ms-meta-DiskEncryptionSettings"
_METADATA_API_VERSION = "2018-03-28"
# Without its settings an encrypted disk cannot be restored: worth more than one try.
_PAUSES_SECONDS = (0.2, 0.6)
# As much as the engine keeps; the status shortens it further where there is no room.
_ERROR_MESSAGE_LIMIT = 4096


class BlobOutcome(Protocol):
    """What is read of the engine's outcome of one blob; see ``_native.pyi``."""

    @property
    def uri(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def snapshot_uri(self) -> str | None: ...
    @property
    def http_status(self) -> int | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def body(self) -> str | None: ...


def blob_items(outcomes: Iterable[BlobOutcome]) -> tuple[SnapshotItem, ...]:
    """Makes the report's items from a run's outcomes, one a blob, in their order.

    A failed disk keeps its blob's URI. Its message is what the service answered; none if the call itself
    failed.
    """
    return tuple(_item(outcome) for outcome in outcomes)


async def disk_encryption_settings(
    session: Session, blobs: Sequence[SasUri], *, proxy: str | None, limit_seconds: float = 10.0
) -> tuple[str | None, ...]:
    """Asks for each blob's encryption settings, all at once; raises nothing.

    There is one answer a blob, in their order: none where the blob has no settings, or did not answer.

    Blocking: `limit_seconds` at most.
    """
    import asyncio

    return tuple(
        await asyncio.gather(*(_encryption_settings(session(), blob, proxy, limit_seconds) for blob in blobs))
    )


def _item(outcome: BlobOutcome) -> SnapshotItem:
    if outcome.outcome == "created":
        return SnapshotItem(True, snapshot_uri=outcome.snapshot_uri, error_message="", blob_uri=outcome.uri)
    message = None
    if outcome.http_status is not None:
        # The body, from which the caller tells one refusal from another; some refusals have none.
        message = redacted(outcome.body or outcome.message or "").lstrip("\ufeff")[:_ERROR_MESSAGE_LIMIT]
    return SnapshotItem(False, error_message=message, blob_uri=outcome.uri)


async def _encryption_settings(
    session: aiohttp.ClientSession, blob: SasUri, proxy: str | None, limit_seconds: float
) -> str | None:
    import asyncio

    import aiohttp

    give_up_at = time.monotonic() + limit_seconds
    for pause_seconds in (0.0, *_PAUSES_SECONDS):
        await asyncio.sleep(pause_seconds)
        left_seconds = give_up_at - time.monotonic()
        if left_seconds <= 0:
            break
        try:
            status, settings = await _ask(session, blob, proxy, left_seconds)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
            continue
        if status < 500:
            return settings if status == 200 else None
    return None


async def _ask(
    session: aiohttp.ClientSession, blob: SasUri, proxy: str | None, limit_seconds: float
) -> tuple[int, str | None]:
    import aiohttp
    import yarl

    uri = blob.expose()
    async with session.get(
        # As it is: an escape that is written otherwise is another signature.
        yarl.URL(f"{uri}{'&' if '?' in uri else '?'}comp=metadata", encoded=True),
        headers={"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": _METADATA_API_VERSION},
        allow_redirects=False,
        proxy=proxy,
        timeout=aiohttp.ClientTimeout(total=limit_seconds),
    ) as response:
        # The headers compare without case, as HTTP has it.
        return response.status, response.headers.get(ENCRYPTION_SETTINGS_HEADER) or None
