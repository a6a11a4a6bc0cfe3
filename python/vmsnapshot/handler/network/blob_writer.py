"""Writes the blobs that Azure Backup reads: the status of a job, and its log. Chapter 12.1 of the contract.

The service creates these blobs and sends a SAS for each. This module never creates one, and it does not
interpret what it writes. It runs in a `background`, and never inside the window.

It raises nothing except cancellation, because a blob that cannot be written must not change the outcome of a
job. No text that it returns contains a signature.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmsnapshot.handler.network.causes import cause_of, is_of_proxy
from vmsnapshot.handler.network.proxies import USER_AGENT, OptionalProxy
from vmsnapshot.handler.secret import SasUri, redacted

if TYPE_CHECKING:
    import asyncio

    from azure.core.pipeline.transport import AioHttpTransport
    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import BlobClient

    from vmsnapshot.handler.network.background import Session

# The oldest version that the SDK supports, since 12.0. By default the SDK uses the newest one. A sovereign
# cloud, a private endpoint or an emulator may not support that yet (Azurite answers 400). This module needs
# nothing newer. The signature does not depend on this version, but on the `sv` of the SAS.
API_VERSION = "2019-02-02"

WRITE_LIMIT_SECONDS = 20.0
READ_LIMIT_SECONDS = 10.0

_PAGE_BYTES = 512
# The service's limit for one write of pages.
_CHUNK_BYTES = 4 * 1024 * 1024
# How much of the end of a log is written, unless the blob is longer.
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
_REPORT_LIMIT_BYTES = 256 * 1024
_SOCKET_LIMIT_SECONDS = 10.0
_PAUSES_SECONDS = (0.2, 0.6)
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class WriteResult:
    """The result of one write. `reason` is why nothing was written, without a secret."""

    written: bool
    reason: str | None = None
    failed: bool = False
    """Whether this is an error. Leaving a blob alone on purpose is not."""
    room_bytes: int | None = None
    """The size of a page blob, if the text did not fit and the blob cannot grow."""
    remark: str | None = None
    """What went otherwise than configured, for the log: a proxy that was not used."""


class BlobWriter:
    """Writes one blob several times, completely each time.

    If a block blob is not empty when this process first sees it, it is never written. Another run has written
    its result there, for example on the machine that this one was restored from. A page blob always has a
    size, and its content cannot be distinguished from none. Therefore it always counts as empty.
    """

    def __init__(
        self,
        uri: SasUri,
        *,
        session: Session,
        proxy: OptionalProxy | None = None,
        may_cut_front: bool = False,
    ) -> None:
        """`may_cut_front`: the text is a log. If the blob is too small, its end is enough.

        If `proxy` fails, it is left out and the blob is written directly.
        """
        self._uri = uri
        self._session = session
        self._proxy = proxy or OptionalProxy()
        self._may_cut_front = may_cut_front
        self._content_is_ours = False
        self._content_is_foreign = False
        self._turn: asyncio.Lock | None = None

    async def write(
        self, text: bytes, *, may_replace: bool = False, limit_seconds: float = WRITE_LIMIT_SECONDS
    ) -> WriteResult:
        """Replaces the content of the blob by `text`. One write at a time, in the order of the calls.

        `may_replace` allows replacing the content of a block blob. The caller knows that content.

        Blocking: `limit_seconds` at most, with up to three tries. One through a proxy has half of the time.
        """
        import asyncio

        if self._uri.has_lost_query:
            return self._failed("its SAS URI has lost the `?` in front of the signature")
        if self._turn is None:
            # Not earlier: up to Python 3.9, a lock belongs to the loop of the thread that creates it.
            self._turn = asyncio.Lock()
        self._content_is_ours |= may_replace
        writing = self._write_in_turn(self._turn, text, time.monotonic() + limit_seconds)
        try:
            return await asyncio.wait_for(writing, limit_seconds)
        except asyncio.TimeoutError:
            return self._failed(f"it took longer than {limit_seconds:g} s")

    async def _write_in_turn(self, turn: asyncio.Lock, text: bytes, give_up_at: float) -> WriteResult:
        import asyncio

        async with turn:
            cause, of_proxy = "", None
            for pause_seconds in (0.0, *_PAUSES_SECONDS):
                await asyncio.sleep(pause_seconds)
                proxy = None if of_proxy else self._proxy.uri
                limit_seconds = (give_up_at - time.monotonic()) / 2 if proxy else None
                try:
                    result = await asyncio.wait_for(self._write(text, proxy), limit_seconds)
                    return replace(result, remark=_remark(of_proxy))
                except Exception as error:
                    cause, is_transient = _judge(error, proxy)
                    if proxy is not None and is_of_proxy(error):
                        self._proxy.leave_out()
                        of_proxy = cause
                    elif not is_transient:
                        break
            return self._failed(f"{of_proxy}; directly: {cause}" if of_proxy else cause)

    async def _write(self, text: bytes, proxy: str | None) -> WriteResult:
        async with _client(self._uri, self._session, proxy) as blob:
            # A HEAD request. It needs the same permission as a GET, and transfers no content.
            properties = await blob.get_blob_properties()
            self._proxy.has_worked |= proxy is not None
            kind = getattr(properties.blob_type, "value", None)
            if kind == "BlockBlob":
                return await self._write_block_blob(blob, properties, text)
            if kind == "PageBlob":
                return await self._write_page_blob(blob, properties.size or 0, text)
            return self._failed(f"it is neither a block blob nor a page blob, but {kind}")

    async def _write_block_blob(
        self, blob: BlobClient, properties: BlobProperties, text: bytes
    ) -> WriteResult:
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import ContentSettings

        self._content_is_foreign |= (properties.size or 0) > 0
        if self._content_is_foreign and not self._content_is_ours:
            return WriteResult(False, f"left `{self._uri}` alone: it already has the result of another run")
        try:
            await blob.upload_blob(
                text,
                overwrite=True,
                # Replace only the version that was seen. A blob that was deleted meanwhile is not created
                # again. Content that another program has written meanwhile is not replaced.
                etag=properties.etag or "*",
                match_condition=MatchConditions.IfNotModified,
                # A PUT sets the type again, and the reader may depend on the type that the service has set.
                content_settings=ContentSettings(content_type=properties.content_settings.content_type),
            )
        except HttpResponseError as error:
            # After an error of the server the blob may have been written. After a refusal it was not.
            self._content_is_ours |= (error.status_code or 500) >= 500
            raise
        except BaseException:
            # No answer, or cancelled. The blob may have been written.
            self._content_is_ours = True
            raise
        self._content_is_ours = True
        return WriteResult(True)

    async def _write_page_blob(self, blob: BlobClient, size_bytes: int, text: bytes) -> WriteResult:
        from azure.core.exceptions import HttpResponseError

        if self._may_cut_front:
            text = _last_lines(text, max(_LOG_LIMIT_BYTES, size_bytes))
        pages = _padded(text)
        if len(pages) > size_bytes:
            try:
                await blob.resize_blob(len(pages))
            except HttpResponseError as error:
                reason, is_transient = _judge(error, self._proxy.uri)
                if is_transient:
                    raise
                if not self._may_cut_front or not size_bytes:
                    # Half a status is useless. Leave the one that is there.
                    cause = f"it cannot grow from {size_bytes} to {len(pages)} bytes: {reason}"
                    return replace(self._failed(cause), room_bytes=size_bytes)
                pages = _padded(_last_lines(text, size_bytes))
        if size_bytes:
            await blob.clear_page(offset=0, length=size_bytes)
        for offset in range(0, len(pages), _CHUNK_BYTES):
            chunk = pages[offset : offset + _CHUNK_BYTES]
            await blob.upload_page(chunk, offset=offset, length=len(chunk))
        return WriteResult(True)

    def _failed(self, cause: str) -> WriteResult:
        return WriteResult(False, f"could not write `{self._uri}`: {cause}", failed=True)


async def may_be_mended(
    uri: SasUri,
    task_id: str | None,
    *,
    session: Session,
    proxy: OptionalProxy | None = None,
    limit_seconds: float = READ_LIMIT_SECONDS,
) -> bool | None:
    """Returns whether the report of a killed worker may be written to the status blob of its task.

    It may if the blob is empty, or has the transitioning report of this task. A page blob is checked in the
    same way, because the result of another task must stay. Returns `None` if the blob cannot be read now.

    Blocking: `limit_seconds` at most. If `proxy` fails, the blob is read directly in what is left.
    """
    import asyncio

    if uri.has_lost_query:
        # The writer says so, and makes no request either.
        return True
    reading = _read_or_direct(uri, session, proxy or OptionalProxy(), limit_seconds / 2)
    try:
        content = await asyncio.wait_for(reading, limit_seconds)
    except Exception:
        return None
    text = content.rstrip(b" \0")
    if not text:
        return True
    try:
        status = json.loads(text)[0]["status"]
        return bool(status["taskId"] == task_id and status["code"] == "4")
    except (ValueError, LookupError, TypeError, RecursionError):
        # Not a report of ours.
        return False


async def _read_or_direct(
    uri: SasUri, session: Session, proxy: OptionalProxy, proxy_limit_seconds: float
) -> bytes:
    import asyncio

    if proxy.uri is not None:
        try:
            return await asyncio.wait_for(_read(uri, session, proxy.uri), proxy_limit_seconds)
        except Exception as error:
            if not is_of_proxy(error):
                raise
            proxy.leave_out()
    return await _read(uri, session, None)


def _remark(of_proxy: str | None) -> str | None:
    return f"connected directly, because the proxy failed: {of_proxy}" if of_proxy else None


async def _read(uri: SasUri, session: Session, proxy: str | None) -> bytes:
    async with _client(uri, session, proxy) as blob:
        properties = await blob.get_blob_properties()
        if not properties.size:
            # The service has no range for an empty blob.
            return b""
        stream = await blob.download_blob(offset=0, length=_REPORT_LIMIT_BYTES)
        content: bytes = await stream.readall()
        return content


def _client(uri: SasUri, session: Session, proxy: str | None) -> BlobClient:
    import logging

    from azure.core.credentials import AzureSasCredential
    from azure.storage.blob.aio import BlobClient

    # The SDK logs every request with its headers at INFO.
    logging.getLogger("azure").setLevel(logging.CRITICAL + 1)
    parts = urllib.parse.urlsplit(uri.expose())
    # The end of the container name does not matter, because the SDK joins the two again.
    container, _, name = parts.path.lstrip("/").partition("/")
    proxies: dict[str, Any] = {"proxies": {"http": proxy, "https": proxy}} if proxy else {}
    return BlobClient(
        f"{parts.scheme}://{parts.netloc}",
        urllib.parse.unquote(container),
        urllib.parse.unquote(name),
        # The SDK sends a credential unchanged. It would parse a signature in the URL, drop unknown parameters
        # and encode the rest differently.
        credential=AzureSasCredential(parts.query),
        api_version=API_VERSION,
        transport=_transport(session, is_proxied=proxy is not None),
        # This module retries by itself, and it never follows a redirect to another host.
        retry_total=0,
        permit_redirects=False,
        # Without the versions of interpreter and kernel, which the SDK would add.
        base_user_agent="VMSnapshot",
        user_agent_use_env=False,
        **proxies,
    )


def _transport(session: Session, *, is_proxied: bool) -> AioHttpTransport:
    from azure.core.pipeline.transport import AioHttpTransport

    class Transport(AioHttpTransport):  # type: ignore[misc]  # it has no types
        """Introduces itself to a proxy. Some refuse a client that does not."""

        async def send(self, request: Any, **options: Any) -> Any:
            return await super().send(request, proxy_headers={"User-Agent": USER_AGENT}, **options)

    return (Transport if is_proxied else AioHttpTransport)(
        session=session(),
        session_owner=False,
        # Half of the time of a write, so that the other half is left if a proxy swallows packets.
        connection_timeout=_SOCKET_LIMIT_SECONDS / 2 if is_proxied else _SOCKET_LIMIT_SECONDS,
        read_timeout=_SOCKET_LIMIT_SECONDS,
    )


def _judge(error: Exception, proxy: str | None) -> tuple[str, bool]:
    """Returns the cause in words, and whether another try may succeed."""
    import asyncio

    import aiohttp
    from azure.core.exceptions import AzureError, HttpResponseError

    if isinstance(error, HttpResponseError) and error.status_code:
        code = getattr(error.response, "headers", {}).get("x-ms-error-code", "")
        cause = f"the service answered {error.status_code} {redacted(code)[:64]}".rstrip()
        if error.status_code == 403:
            cause += " (hint: the SAS may have expired, or a firewall of the storage account refuses this VM)"
        elif error.status_code == 407 and proxy is not None:
            cause = f"the proxy {redacted(proxy)} asks for another name and password (407)"
        # Another program wrote the blob between our HEAD and our PUT. Start again with HEAD.
        was_changed = error.status_code == 412 and code == "ConditionNotMet"
        return cause, was_changed or error.status_code in _TRANSIENT_STATUSES
    return cause_of(error, proxy=proxy), isinstance(
        error, (AzureError, aiohttp.ClientError, asyncio.TimeoutError, OSError)
    )


def _padded(text: bytes) -> bytes:
    return text + b" " * (-len(text) % _PAGE_BYTES)


def _last_lines(text: bytes, limit_bytes: int) -> bytes:
    if len(text) <= limit_bytes:
        return text
    tail = text[-limit_bytes:]
    # From the beginning of a line if there is one, because a cut may be in the middle of a character.
    return tail.partition(b"\n")[2] or tail
