"""Snapshots by the guest: the engine sends one request per blob inside the window.

This module has the steps before and after. Before, it asks for the encryption settings of each disk, which
become metadata of its snapshot. Afterwards it reports on each disk from the engine's outcomes. Chapters 3.2
and 5 of the contract.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Callable

from vmsnapshot import BlobOutcome
from vmsnapshot.handler.network.causes import cause_of, is_of_proxy
from vmsnapshot.handler.network.proxies import USER_AGENT, OptionalProxy
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.secret import SasUri, redacted

if TYPE_CHECKING:
    import aiohttp

    from vmsnapshot.handler.network.background import Session

ENCRYPTION_SETTINGS_HEADER = "x-ms-meta-DiskEncryptionSettings"
_METADATA_API_VERSION = "2018-03-28"
# Retry, because an encrypted disk cannot be restored without its settings.
_PAUSES_SECONDS = (0.2, 0.6)
# The same limit as the engine's. The status shortens messages further if there is no room.
_ERROR_MESSAGE_LIMIT = 4096


def blob_items(outcomes: Iterable[BlobOutcome]) -> tuple[SnapshotItem, ...]:
    """Returns one item of the report per blob, in the order of the outcomes.

    The item of a failed disk has the URI of its blob. Its message is the answer of the service, or `None` if
    there was no answer.
    """
    return tuple(_item(outcome) for outcome in outcomes)


async def disk_encryption_settings(
    session: Session,
    blobs: Sequence[SasUri],
    *,
    proxy: OptionalProxy,
    warn: Callable[[str], None],
    limit_seconds: float = 10.0,
) -> tuple[str | None, ...]:
    """Asks all blobs at once for their encryption settings. Never raises.

    Returns one answer per blob, in their order. It is `None` if the blob has no settings or did not answer.
    `warn` is told of a blob that did not answer, and of a proxy that failed and was left out.

    Blocking: `limit_seconds` at most. A try through the proxy has half of the time.
    """
    import asyncio

    return tuple(
        await asyncio.gather(
            *(_encryption_settings(session(), blob, proxy, warn, limit_seconds) for blob in blobs)
        )
    )


def _item(outcome: BlobOutcome) -> SnapshotItem:
    if outcome.outcome == "created":
        return SnapshotItem(True, snapshot_uri=outcome.snapshot_uri, error_message="", blob_uri=outcome.uri)
    message = None
    if outcome.http_status is not None:
        # The caller distinguishes refusals by the body. Some refusals have none.
        message = redacted(outcome.body or outcome.message or "").lstrip("\ufeff")[:_ERROR_MESSAGE_LIMIT]
    return SnapshotItem(False, error_message=message, blob_uri=outcome.uri)


async def _encryption_settings(
    session: aiohttp.ClientSession,
    blob: SasUri,
    proxy: OptionalProxy,
    warn: Callable[[str], None],
    limit_seconds: float,
) -> str | None:
    import asyncio

    import aiohttp

    give_up_at = time.monotonic() + limit_seconds
    cause, used = "there was no time to ask", proxy.uri
    for pause_seconds in (0.0, *_PAUSES_SECONDS):
        await asyncio.sleep(pause_seconds)
        left_seconds = give_up_at - time.monotonic()
        if left_seconds <= 0:
            break
        used = used and proxy.uri
        try:
            status, settings = await _ask(session, blob, used, left_seconds / 2 if used else left_seconds)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            cause, is_proxys = cause_of(error, proxy=used), is_of_proxy(error)
        else:
            proxy.has_worked |= used is not None and status != 407
            if status == 200:
                return settings
            cause, is_proxys = f"the service answered {status}", status == 407
            if status < 500 and not (used and is_proxys):
                break
        if used and is_proxys:
            if proxy.uri is not None:
                warn(f"asking for the encryption settings directly, because the proxy failed: {cause}")
            proxy.leave_out()
            used = None
    warn(f"could not ask `{blob}` for its encryption settings, so its snapshot has none: {cause}")
    return None


async def _ask(
    session: aiohttp.ClientSession, blob: SasUri, proxy: str | None, limit_seconds: float
) -> tuple[int, str | None]:
    import aiohttp
    import yarl

    uri = blob.expose()
    async with session.get(
        # Unchanged, because a different escaping would invalidate the signature.
        yarl.URL(f"{uri}{'&' if '?' in uri else '?'}comp=metadata", encoded=True),
        headers={"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": _METADATA_API_VERSION},
        allow_redirects=False,
        proxy=proxy,
        proxy_headers={"User-Agent": USER_AGENT} if proxy else None,
        timeout=aiohttp.ClientTimeout(total=limit_seconds),
    ) as response:
        # These headers compare case-insensitively, as in HTTP.
        return response.status, response.headers.get(ENCRYPTION_SETTINGS_HEADER) or None
