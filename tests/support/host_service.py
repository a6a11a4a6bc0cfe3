"""The host and a blob service in one. It records every request, and a test can script the answers.

It runs in its own process, so that it answers while the test's interpreter is busy. Without a
script it answers as a healthy host and a healthy blob service do:

    POST .../presnapshot, .../dosnapshot        chapter 6 of the extension's contract
    GET, POST /machine/plugins?comp=xdisksvc    chapter 11: no request (404); 200 to a result
    HEAD, GET, PUT of a block blob              in memory
    PUT comp=page, comp=properties              page blobs, as far as statuses and logs need them
    PUT comp=snapshot, GET comp=metadata        of either

Use it so::

    with HostService() as service:
        service.create_block_blob("status")
        service.create_page_blob("os.vhd", metadata={"DiskEncryptionSettings": "..."})
        service.script("presnapshot", Answer(404))                       # from now on
        service.script("status", Answer(503), USUAL, operation="PUT")    # once, then as usual
        ... service.address, service.uri("os.vhd") ...
        service.wait_for("dosnapshot")
        assert [request.operation for request in service.requests()] == [...]
        assert service.content("status") == b"..."
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import json
import multiprocessing
import signal
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Union
from xml.sax.saxutils import escape

from aiohttp import web

from tests.support.certificates import Certificates

SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZQ%2BA%3D%3D"
"""The signature in every URI of `HostService.uri`, as it is written there. It must not be found elsewhere."""

HOST_OPERATIONS = (
    "presnapshot",
    "dosnapshot",
    "checkforsnapshot",
    "startsnapshot",
    "publishsnapshot",
)

NEVER_MS = 3_600_000.0
"""For `Answer.after_ms`: longer than any test runs."""


@dataclass(frozen=True)
class Answer:
    """One scripted answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    after_ms: float = 0.0
    """The delay after the request."""
    drops_connection: bool = False
    """Close the connection instead of answering, after `after_ms`."""


@dataclass(frozen=True)
class Usual:
    """The answer without a script, optionally late."""

    after_ms: float = 0.0


USUAL = Usual()

Script = Union[Answer, Usual]


def json_answer(document: object, status: int = 200, *, after_ms: float = 0.0) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, json.dumps(document).encode(), (("Content-Type", "application/json"),), after_ms)


def blob_error(status: int, error_code: str, message: str = "The request was refused.") -> Answer:
    """Returns a refusal as the blob service writes it, with header and XML body."""
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{escape(error_code)}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Answer(
        status, body.encode(), (("Content-Type", "application/xml"), ("x-ms-error-code", error_code))
    )


@dataclass(frozen=True)
class Request:
    """A request as it was received."""

    operation: str
    """One of `HOST_OPERATIONS`, or method and ``comp`` of a blob request: ``HEAD``, ``PUT page``."""
    method: str
    path: str
    query: dict[str, str]
    """Without ``sig``."""
    has_signature: bool
    """Whether ``sig`` was there, byte for byte as in `HostService.uri`."""
    headers: tuple[tuple[str, str], ...]
    """In order, with the names as they were written."""
    body: bytes
    at_ns: int
    """When its head was complete (CLOCK_MONOTONIC)."""
    connection: int
    """The number of its connection, counted from 0."""

    @property
    def blob(self) -> str:
        """The blob's name, as in `HostService.uri`; empty for the host's operations."""
        return self.path[len(_CONTAINER_PATH) :] if self.path.startswith(_CONTAINER_PATH) else ""

    @property
    def json(self) -> Any:
        """The body, parsed as JSON."""
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """Returns the value of a header. Its name is compared without regard to case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a blob."""

    time: str
    """``x-ms-snapshot``."""
    metadata: dict[str, str]
    """The ``x-ms-meta-`` headers that came with the request, without the prefix."""


class HostService:
    """The service, on a free port of 127.0.0.1; over HTTPS if it is given certificates.

    Use it as a context manager, or call `stop`. It ends with the process that started it. Any
    thread may call it.
    """

    def __init__(self, certificates: Certificates | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._turn = threading.Lock()
        self._process = context.Process(target=_serve, args=(theirs, certificates), daemon=True)
        self._process.start()
        theirs.close()
        self._scheme = "https" if certificates else "http"
        self.port = int(self._receive(limit_seconds=30.0))
        self.address = f"127.0.0.1:{self.port}"
        """The value for ``AZURE_GUEST_AGENT_WIRE_PROTOCOL_ADDRESS``."""

    def uri(self, blob: str, *, permission: str = "rw") -> str:
        """Returns a blob's URI with a SAS of the right form. The service checks only its signature."""
        now = datetime.datetime.now(datetime.timezone.utc)
        start, expiry = now - datetime.timedelta(minutes=15), now + datetime.timedelta(hours=1)
        return (
            f"{self._scheme}://{self.address}{_CONTAINER_PATH}{blob}?sv=2018-03-28&sr=b&sig={SIGNATURE}"
            f"&st={start:%Y-%m-%dT%H%%3A%M%%3A%SZ}&se={expiry:%Y-%m-%dT%H%%3A%M%%3A%SZ}&sp={permission}"
        )

    def script(self, subject: str, *answers: Script, operation: str | None = None) -> None:
        """Sets the answers to the requests for a blob, or to one of the `HOST_OPERATIONS`.

        There is one answer per request, and the last one is repeated. `USUAL` is the answer without
        a script. `operation` limits the script to one operation of a blob (see
        `Request.operation`); such a script wins over one without.
        """
        self._ask("script", (subject, operation), list(answers))

    def create_block_blob(
        self, name: str, content: bytes = b"", *, content_type: str = "application/octet-stream"
    ) -> None:
        """Makes a block blob."""
        self._ask("create", name, _Blob("BlockBlob", content, content_type))

    def create_page_blob(
        self, name: str, size_bytes: int = 512, *, metadata: dict[str, str] | None = None
    ) -> None:
        """Makes a page blob filled with zeros: a disk, or a status blob of that type."""
        blob = _Blob("PageBlob", bytes(size_bytes), "application/octet-stream", metadata or {})
        self._ask("create", name, blob)

    def content(self, name: str) -> bytes:
        """Returns the content of a blob. Raises `KeyError` if there is no such blob."""
        return self._blob(name).content

    def content_type(self, name: str) -> str:
        """Returns a blob's content type."""
        return self._blob(name).content_type

    def snapshots(self, name: str) -> list[Snapshot]:
        """Returns the snapshots of a blob, oldest first."""
        return self._blob(name).snapshots

    def requests(self, operation: str | None = None) -> list[Request]:
        """Returns all requests so far, or all of one operation, in order of arrival."""
        recorded: list[Request] = self._ask("requests")
        return [request for request in recorded if operation in (None, request.operation)]

    def forget_requests(self) -> None:
        """Forgets the recorded requests."""
        self._ask("forget")

    def reset(self) -> None:
        """Forgets blobs, scripts and requests, so that many tests can use one service in turn."""
        self._ask("reset")

    def wait_for(self, operation: str, count: int = 1, *, limit_seconds: float = 10.0) -> list[Request]:
        """Waits until so many requests of an operation are recorded, and returns them.

        Raises:
            TimeoutError: fewer were recorded within `limit_seconds`.
        """
        if not self._ask("wait", operation, count, limit_seconds, limit_seconds=limit_seconds + 10.0):
            raise TimeoutError(f"no {count} requests of {operation} within {limit_seconds:g} s")
        return self.requests(operation)

    def stop(self) -> None:
        """Ends the service, within a time limit."""
        with contextlib.suppress(OSError):
            self._control.send(("stop",))
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=2.0)
        self._control.close()

    def __enter__(self) -> HostService:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _blob(self, name: str) -> _Blob:
        blob: _Blob | None = self._ask("blob", name)
        if blob is None:
            raise KeyError(name)
        return blob

    def _ask(self, *command: object, limit_seconds: float = 10.0) -> Any:
        with self._turn:
            self._control.send(command)
            return self._receive(limit_seconds=limit_seconds)

    def _receive(self, *, limit_seconds: float) -> Any:
        if not self._control.poll(limit_seconds):
            raise RuntimeError("the host service does not answer")
        return self._control.recv()


_CONTAINER_PATH = "/disks/"


@dataclass
class _Blob:
    kind: str
    content: bytes
    content_type: str
    metadata: dict[str, str] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    version: int = 0

    @property
    def etag(self) -> str:
        return f'"0x{self.version:X}"'


# Everything below runs in the service's process.


class _State:
    def __init__(self) -> None:
        self.scripts: dict[tuple[str, str | None], list[Script]] = {}
        self.blobs: dict[str, _Blob] = {}
        self.requests: list[Request] = []
        self.connections: dict[object, int] = {}
        self.snapshots = 0
        self.versions = 0
        self.recorded = asyncio.Condition()

    def next_answer(self, request: Request) -> Script:
        subject = request.blob or request.operation
        for key in ((subject, request.operation), (subject, None)):
            script = self.scripts.get(key)
            if script:
                return script.pop(0) if len(script) > 1 else script[0]
        return USUAL

    async def record(self, request: Request) -> None:
        async with self.recorded:
            self.requests.append(request)
            self.recorded.notify_all()

    async def has_come(self, operation: str, count: int, limit_seconds: float) -> bool:
        def has_come() -> bool:
            return sum(request.operation == operation for request in self.requests) >= count

        try:
            async with self.recorded:
                await asyncio.wait_for(self.recorded.wait_for(has_come), limit_seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def answer(self, incoming: web.BaseRequest) -> web.StreamResponse:
        request = await self.read(incoming)
        await self.record(request)
        wanted = self.next_answer(request)
        if wanted.after_ms:
            await asyncio.sleep(wanted.after_ms / 1e3)
        if isinstance(wanted, Usual):
            wanted = self.usual_answer(request)
        if wanted.drops_connection:
            assert incoming.transport is not None
            incoming.transport.abort()
        headers = [("Server", "vmsnapshot-host-service"), ("x-ms-version", "2018-03-28"), *wanted.headers]
        if request.method == "HEAD" and not any(name == "Content-Length" for name, _ in headers):
            headers.append(("Content-Length", str(len(wanted.body))))
        body = None if request.method == "HEAD" else wanted.body
        return web.Response(status=wanted.status, body=body, headers=headers)

    async def read(self, incoming: web.BaseRequest) -> Request:
        at_ns = time.monotonic_ns()
        query = dict(incoming.query)
        has_signature = f"sig={SIGNATURE}" in incoming.raw_path
        query.pop("sig", None)
        path = incoming.path
        if "/metadata/recsvc/snapshot/" in path:
            operation = path.rpartition("/")[2]
        elif path == "/machine/plugins":
            operation = query.get("type", "")
        else:
            operation = f"{incoming.method} {query.get('comp', '')}".rstrip()
        return Request(
            operation,
            incoming.method,
            path,
            query,
            has_signature,
            tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in incoming.raw_headers),
            # `incoming.read` would stop at one mebibyte.
            await incoming.content.read(),
            at_ns,
            self.connections.setdefault(incoming.protocol, len(self.connections)),
        )

    def usual_answer(self, request: Request) -> Answer:
        if request.operation == "presnapshot":
            return json_answer(_pre_snapshot_document())
        if request.operation == "dosnapshot":
            # A request without disks means all disks, and this machine has one.
            disks = request.json["diskIds"] or [-1]
            return json_answer({"snapshotInfo": [self.host_item(disk) for disk in disks]})
        if request.operation == "checkforsnapshot":
            return Answer(404)
        if request.operation in HOST_OPERATIONS:
            return json_answer({})
        return self.blob_answer(request)

    def host_item(self, disk: int) -> dict[str, object]:
        uri = f"https://md-disk{disk}.z11.blob.storage.azure.net:443/q1w2e3r4/abcd"
        return {
            "isSuccessful": "true",
            "snapshotUri": f"{uri}?snapshot={self.snapshot_time()}",
            "errorMessage": None,
            "statusCode": 200,
        }

    def snapshot_time(self) -> str:
        self.snapshots += 1
        now = datetime.datetime.now(datetime.timezone.utc)
        return f"{now:%Y-%m-%dT%H:%M:%S}.{self.snapshots % 10_000_000:07d}Z"

    def blob_answer(self, request: Request) -> Answer:
        if not request.has_signature:
            return blob_error(403, "AuthenticationFailed")
        blob = self.blobs.get(request.blob)
        if blob is None:
            if request.operation == "PUT":
                # Like the real service, a PUT makes a blob unless the request forbids it.
                if request.header("If-Match"):
                    return blob_error(412, "ConditionNotMet")
                self.blobs[request.blob] = blob = _Blob("BlockBlob", b"", "")
                return self.put(blob, request)
            return blob_error(404, "BlobNotFound")
        if request.header("If-Match") not in (None, "*", blob.etag):
            return blob_error(412, "ConditionNotMet")
        if request.operation in ("HEAD", "GET", "GET metadata"):
            return _read_answer(blob, request)
        if request.operation == "PUT snapshot":
            return self.take_snapshot(blob, request)
        if request.operation == "PUT" and blob.kind == "BlockBlob":
            return self.put(blob, request)
        if blob.kind == "PageBlob" and request.operation in ("PUT page", "PUT properties"):
            return self.put_pages(blob, request)
        return blob_error(400, "InvalidOperation")

    def put(self, blob: _Blob, request: Request) -> Answer:
        blob.content = request.body
        blob.content_type = request.header("x-ms-blob-content-type") or "application/octet-stream"
        return self.written(blob, 201)

    def put_pages(self, blob: _Blob, request: Request) -> Answer:
        if request.operation == "PUT properties":
            length = int(request.header("x-ms-blob-content-length") or len(blob.content))
            blob.content = blob.content[:length].ljust(length, b"\0")
            return self.written(blob, 200)
        is_update = request.header("x-ms-page-write") == "update"
        wanted = request.header("x-ms-range") or request.header("Range") or ""
        first, _, last = wanted.partition("=")[2].partition("-")
        begin, end = int(first), int(last) + 1
        pages = request.body if is_update else bytes(end - begin)
        if begin % 512 or end % 512 or end > len(blob.content) or len(pages) != end - begin:
            return blob_error(416, "InvalidPageRange")
        if len(request.body) > 4 * 1024 * 1024:
            return blob_error(413, "RequestBodyTooLarge")
        blob.content = blob.content[:begin] + pages + blob.content[end:]
        return self.written(blob, 201)

    def change(self, blob: _Blob) -> None:
        # An ETag is never used again for any blob, so that a late request cannot match a newer content.
        self.versions += 1
        blob.version = self.versions

    def written(self, blob: _Blob, status: int) -> Answer:
        self.change(blob)
        return Answer(status, headers=tuple(_state_headers(blob)))

    def take_snapshot(self, blob: _Blob, request: Request) -> Answer:
        prefix = "x-ms-meta-"
        metadata = {
            name[len(prefix) :]: value for name, value in request.headers if name.lower().startswith(prefix)
        }
        snapshot = Snapshot(self.snapshot_time(), metadata)
        blob.snapshots.append(snapshot)
        return Answer(201, headers=(("x-ms-snapshot", snapshot.time), *_state_headers(blob)))

    def obey(self, command: Sequence[Any]) -> object:
        if command[0] == "script":
            self.scripts[command[1]] = command[2]
        elif command[0] == "create":
            self.blobs[command[1]] = command[2]
            self.change(command[2])
        elif command[0] == "blob":
            return self.blobs.get(command[1])
        elif command[0] == "requests":
            return list(self.requests)
        elif command[0] == "forget":
            self.requests.clear()
        elif command[0] == "reset":
            for forgotten in (self.requests, self.scripts, self.blobs):
                forgotten.clear()
        else:
            raise ValueError(f"no such command: {command[0]}")
        return None


def _serve(control: Connection, certificates: Certificates | None) -> None:
    # Ctrl-C reaches the whole group, but the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve_until_told(control, certificates))


async def _serve_until_told(control: Connection, certificates: Certificates | None) -> None:
    context = None
    if certificates:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.server_certificate, certificates.server_key)
    loop = asyncio.get_running_loop()
    state = _State()
    server = web.Server(state.answer)
    listening = await loop.create_server(server, "127.0.0.1", 0, ssl=context, backlog=1024)
    told_to_stop = asyncio.Event()
    waits: set[asyncio.Task[None]] = set()

    async def answer_when_come(operation: str, count: int, limit_seconds: float) -> None:
        control.send(await state.has_come(operation, count, limit_seconds))

    def obey() -> None:
        try:
            command = control.recv()
        except EOFError:
            command = ("stop",)
        if command[0] == "stop":
            loop.remove_reader(control.fileno())
            told_to_stop.set()
        elif command[0] == "wait":
            wait = loop.create_task(answer_when_come(*command[1:]))
            waits.add(wait)
            wait.add_done_callback(waits.discard)
        else:
            control.send(state.obey(command))

    loop.add_reader(control.fileno(), obey)
    control.send(listening.sockets[0].getsockname()[1])
    await told_to_stop.wait()
    listening.close()
    for wait in waits:
        wait.cancel()
    await server.shutdown(timeout=0.1)


def _pre_snapshot_document() -> dict[str, object]:
    now = datetime.datetime.now(datetime.timezone.utc)
    names = ("year", "month", "day", "hour", "minute", "second")
    return {
        "responseTime": {name: getattr(now, name) for name in names},
        "bhsVersion": "1.0",
        "nodeId": "node",
        "result": "ok",
    }


def _read_answer(blob: _Blob, request: Request) -> Answer:
    headers = [
        *_state_headers(blob),
        ("x-ms-blob-type", blob.kind),
        *((f"x-ms-meta-{name}", value) for name, value in blob.metadata.items()),
    ]
    if request.operation == "GET metadata":
        return Answer(200, headers=tuple(headers))
    headers.append(("Content-Type", blob.content_type or "application/octet-stream"))
    if request.method == "HEAD":
        return Answer(200, headers=(*headers, ("Content-Length", str(len(blob.content)))))
    wanted = request.header("x-ms-range") or request.header("Range")
    if not wanted:
        return Answer(200, blob.content, tuple(headers))
    first, _, last = wanted.partition("=")[2].partition("-")
    begin, end = int(first), min(int(last or len(blob.content)) + 1, len(blob.content))
    if begin >= len(blob.content):
        return blob_error(416, "InvalidRange")
    headers.append(("Content-Range", f"bytes {begin}-{end - 1}/{len(blob.content)}"))
    return Answer(206, blob.content[begin:end], tuple(headers))


def _state_headers(blob: _Blob) -> list[tuple[str, str]]:
    now = email.utils.formatdate(usegmt=True)
    return [("ETag", blob.etag), ("Last-Modified", now), ("x-ms-request-server-encrypted", "true")]
