"""Writes the blobs that Azure Backup reads: the status of a job, and its log. Chapter 12.1 of the contract.

The service makes these blobs, and gives a SAS for each; this file never makes one. It does not know what it
writes: the documents are `status`'s and `log`'s. It runs in a `background`, and never inside the window.

No exception leaves it but cancellation, and no signature is in what it says: a blob that cannot be written
must not change what a job comes to.
"""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmsnapshot.handler.secret import SasUri, redacted

if TYPE_CHECKING:
    import asyncio

    from azure.storage.blob import BlobProperties
    from azure.storage.blob.aio import BlobClient

    from vmsnapshot.handler.network.background import Session

# The oldest version that the SDK can speak, and always could since 12.0. Its own choice is the newest, which
# a sovereign cloud, a private endpoint or an emulator may not know yet (Azurite answers 400 then). Nothing
# that is done here is younger. The signature does not depend on it: that goes by the `sv` of the SAS.
API_VERSION = "2019-02-02"

WRITE_LIMIT_SECONDS = 20.0
READ_LIMIT_SECONDS = 10.0

_PAGE_BYTES = 512
# The service's limit for one write of pages.
_CHUNK_BYTES = 4 * 1024 * 1024
# The end of a log that is kept, where the blob is no longer than that.
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
_REPORT_LIMIT_BYTES = 256 * 1024
_SOCKET_LIMIT_SECONDS = 10.0
_PAUSES_SECONDS = (0.2, 0.6)
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class WriteResult:
    """What became of one write; `reason` says why nothing was written, without a secret."""

    written: bool
    reason: str | None = None
    failed: bool = False
    """Whether that is an error: a blob that was left alone on purpose is none."""
    room_bytes: int | None = None
    """What a page blob can hold, if the text did not fit and the blob cannot grow."""


class BlobWriter:
    """Writes one blob, again and again, each time the whole of it.

    A block blob that holds something when this process first sees it is never written: another run, perhaps
    on the machine that this one is a restored copy of, has put its result there. A page blob has a size, but
    no content that could be told from none, so it always counts as empty.
    """

    def __init__(
        self, uri: SasUri, *, session: Session, proxy: str | None = None, may_cut_front: bool = False
    ) -> None:
        """`may_cut_front`: the text is a log, of which the end will do where the blob cannot hold it all."""
        self._uri = uri
        self._session = session
        self._proxy = proxy
        self._may_cut_front = may_cut_front
        self._content_is_ours = False
        self._content_is_foreign = False
        self._turn: asyncio.Lock | None = None

    async def write(
        self, text: bytes, *, may_replace: bool = False, limit_seconds: float = WRITE_LIMIT_SECONDS
    ) -> WriteResult:
        """Writes `text` in place of what the blob holds; one write at a time, in the order of the calls.

        `may_replace` writes a block blob that holds something: the caller knows what it is.

        Blocking: `limit_seconds` at most, with up to three tries.
        """
        import asyncio

        if self._turn is None:
            # Not before: up to Python 3.9 a lock belongs to the loop of the thread that makes it.
            self._turn = asyncio.Lock()
        self._content_is_ours |= may_replace
        try:
            return await asyncio.wait_for(self._write_in_turn(self._turn, text), limit_seconds)
        except asyncio.TimeoutError:
            return self._failed(f"it took longer than {limit_seconds:g} s")

    async def _write_in_turn(self, turn: asyncio.Lock, text: bytes) -> WriteResult:
        import asyncio

        async with turn:
            cause = ""
            for pause_seconds in (0.0, *_PAUSES_SECONDS):
                await asyncio.sleep(pause_seconds)
                try:
                    return await self._write(text)
                except Exception as error:
                    cause, is_transient = _judge(error)
                    if not is_transient:
                        break
            return self._failed(cause)

    async def _write(self, text: bytes) -> WriteResult:
        async with _client(self._uri, self._session, self._proxy) as blob:
            # A HEAD: it needs no more permission than a GET, and brings no content along.
            properties = await blob.get_blob_properties()
            kind = getattr(properties.blob_type, "value", None)
            if kind == "BlockBlob":
                return await self._write_block_blob(blob, properties, text)
            if kind == "PageBlob":
                return await self._write_page_blob(blob, properties.size or 0, text)
            return self._failed(f"it is neither a block nor a page blob, but {kind}")

    async def _write_block_blob(
        self, blob: BlobClient, properties: BlobProperties, text: bytes
    ) -> WriteResult:
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import ContentSettings

        self._content_is_foreign |= (properties.size or 0) > 0
        if self._content_is_foreign and not self._content_is_ours:
            return WriteResult(False, f"left `{self._uri}` alone: it held another run's result already")
        try:
            await blob.upload_blob(
                text,
                overwrite=True,
                # What is there now and nothing else: a blob that was deleted meanwhile is not made anew, and
                # what somebody, or an earlier write of ours that was given up, has put there is not replaced.
                etag=properties.etag or "*",
                match_condition=MatchConditions.IfNotModified,
                # A PUT sets it anew; the service's reader may go by what it set itself.
                content_settings=ContentSettings(content_type=properties.content_settings.content_type),
            )
        except HttpResponseError as error:
            # After a server's fault nobody knows whether it was written; a refusal says that it was not.
            self._content_is_ours |= (error.status_code or 500) >= 500
            raise
        except BaseException:
            # No answer, or cancelled: it may have been written.
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
                if _judge(error)[1]:
                    raise
                if not self._may_cut_front or not size_bytes:
                    # Half a status is none, and it is better to leave the one that is there.
                    cause = f"it cannot grow from {size_bytes} to {len(pages)} bytes: {_judge(error)[0]}"
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
    proxy: str | None = None,
    limit_seconds: float = READ_LIMIT_SECONDS,
) -> bool | None:
    """Whether a status blob holds nothing yet, or this task's transitioning report: its worker was killed.

    A page blob is looked at as closely: what holds another result is not to be written. None where it cannot
    be read now.

    Blocking: `limit_seconds` at most.
    """
    import asyncio

    try:
        content = await asyncio.wait_for(_read(uri, session, proxy), limit_seconds)
    except Exception:
        return None
    text = content.rstrip(b" \0")
    if not text:
        return True
    try:
        status = json.loads(text)[0]["status"]
        return bool(status["taskId"] == task_id and status["code"] == "4")
    except (ValueError, LookupError, TypeError, RecursionError):
        # Whatever it is, it is not ours.
        return False


async def _read(uri: SasUri, session: Session, proxy: str | None) -> bytes:
    async with _client(uri, session, proxy) as blob:
        properties = await blob.get_blob_properties()
        if not properties.size:
            # The service knows no range of nothing.
            return b""
        stream = await blob.download_blob(offset=0, length=_REPORT_LIMIT_BYTES)
        content: bytes = await stream.readall()
        return content


def _client(uri: SasUri, session: Session, proxy: str | None) -> BlobClient:
    import logging

    from azure.core.credentials import AzureSasCredential
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.storage.blob.aio import BlobClient

    # The SDK logs every request and its headers at INFO, into whatever log the process has.
    logging.getLogger("azure").setLevel(logging.CRITICAL + 1)
    parts = urllib.parse.urlsplit(uri.expose())
    # Where the container ends does not matter here: the SDK puts the two together again.
    container, _, name = parts.path.lstrip("/").partition("/")
    proxies: dict[str, Any] = {"proxies": {"http": proxy, "https": proxy}} if proxy else {}
    return BlobClient(
        f"{parts.scheme}://{parts.netloc}",
        urllib.parse.unquote(container),
        urllib.parse.unquote(name),
        # As a credential it is sent as it is. As a part of the URL the SDK would take it to pieces, leave out
        # what it does not know, and write the rest its own way.
        credential=AzureSasCredential(parts.query),
        api_version=API_VERSION,
        transport=AioHttpTransport(
            session=session(),
            session_owner=False,
            connection_timeout=_SOCKET_LIMIT_SECONDS,
            read_timeout=_SOCKET_LIMIT_SECONDS,
        ),
        # Tries are counted here, and none goes to another host.
        retry_total=0,
        permit_redirects=False,
        # Not the interpreter's and the kernel's versions, which the SDK would send.
        base_user_agent="VMSnapshot",
        user_agent_use_env=False,
        **proxies,
    )


def _judge(error: Exception) -> tuple[str, bool]:
    """Puts an error into words, and says whether another try may do better."""
    import asyncio

    import aiohttp
    from azure.core.exceptions import AzureError, HttpResponseError

    if isinstance(error, HttpResponseError) and error.status_code:
        code = getattr(error.response, "headers", {}).get("x-ms-error-code", "")
        cause = f"the service answered {error.status_code} {redacted(code)[:64]}".rstrip()
        # Somebody wrote it between our look and our write: look again.
        was_changed = error.status_code == 412 and code == "ConditionNotMet"
        return cause, was_changed or error.status_code in _TRANSIENT_STATUSES
    origin = getattr(error, "inner_exception", None) or error
    cause = f"{redacted(origin)[:200]} ({type(origin).__name__})".strip()
    return cause, isinstance(error, (AzureError, aiohttp.ClientError, asyncio.TimeoutError, OSError))


def _padded(text: bytes) -> bytes:
    return text + b" " * (-len(text) % _PAGE_BYTES)


def _last_lines(text: bytes, limit_bytes: int) -> bytes:
    if len(text) <= limit_bytes:
        return text
    tail = text[-limit_bytes:]
    # From the beginning of a line, where there is one: a line that was cut may begin inside of a character.
    return tail.partition(b"\n")[2] or tail
