"""A blob service that fails on request, in ways in which the real one and Azurite do not.

It runs in its own process, so that it never waits for the interpreter of the program under test.
Each blob has a script with one behaviour per request. The last one answers every further request.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import functools
import multiprocessing
import signal
import socket
import ssl
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Union
from xml.sax.saxutils import escape

from tests.support.certificates import Certificates


@dataclass(frozen=True)
class Creates:
    """Answers 201 with a snapshot's time, ``after_ms`` after the request, any number in parallel."""

    after_ms: float = 0.0


@dataclass(frozen=True)
class CreatesWhenTold:
    """Answers 201 with a snapshot's time once `FaultServer.answer_waiting` is called."""


@dataclass(frozen=True)
class Refuses:
    """Answers with an error as the blob service writes it: header, XML body, storage error code."""

    status: int
    error_code: str
    message: str = "The request was refused."
    after_ms: float = 0.0


@dataclass(frozen=True)
class AnswersByteByByte:
    """Answers 201, one byte every ``pause_ms``: at 20 ms that is more than five seconds."""

    pause_ms: float = 20.0


@dataclass(frozen=True)
class Answers:
    """Answers with exactly these bytes, and then closes the connection if ``then_closes``."""

    raw: bytes
    then_closes: bool = False


@dataclass(frozen=True)
class NeverAnswers:
    """Receives the request and sends nothing."""


@dataclass(frozen=True)
class Resets:
    """Receives the request and resets the connection (RST) instead of answering."""


Behaviour = Union[Creates, CreatesWhenTold, Refuses, AnswersByteByByte, Answers, NeverAnswers, Resets]


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it was received."""

    head: bytes
    """Request line and headers, including the empty line."""
    body: bytes
    at_ns: int
    """When the head was complete (CLOCK_MONOTONIC)."""
    connection: int
    """The number of its connection, counted from 0."""

    @property
    def blob(self) -> str:
        """The last component of the path."""
        return _blob_of(self.head)


class FaultServer:
    """The server, on a free port of 127.0.0.1; over HTTPS if it is given certificates.

    It closes a connection that was idle for ``idle_close_seconds``. Use it as a context manager. It
    ends with the process that started it. Its process imports the caller's main module again, as
    ``multiprocessing`` does, so a script needs its ``if __name__ == "__main__"``.
    """

    def __init__(
        self,
        certificates: Certificates | None = None,
        *,
        default: Behaviour = Creates(),
        idle_close_seconds: float | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, certificates, default, idle_close_seconds), daemon=True
        )
        self._process.start()
        theirs.close()
        self.certificates = certificates
        self.port = int(self._receive(limit_seconds=30.0))
        """The port on which it listens."""

    def script(self, blob: str, *behaviours: Behaviour) -> None:
        """Sets the behaviour for each request of one blob in turn. The last one is repeated."""
        self._ask("script", blob, behaviours)

    def uri(self, blob: str, *, host: str = "127.0.0.1", permission: str = "rw") -> str:
        """Returns a blob's URI with a SAS of the right form, which this server does not check."""
        now = datetime.datetime.now(datetime.timezone.utc)
        start, expiry = now - datetime.timedelta(minutes=15), now + datetime.timedelta(hours=1)
        scheme = "https" if self.certificates else "http"
        return (
            f"{scheme}://{host}:{self.port}/disks/{blob}?sv=2018-03-28&sr=b&sig=c2lnbmF0dXJl%3D"
            f"&st={start:%Y-%m-%dT%H%%3A%M%%3A%SZ}&se={expiry:%Y-%m-%dT%H%%3A%M%%3A%SZ}&sp={permission}"
        )

    def requests(self) -> list[RecordedRequest]:
        """Returns every request so far, in order of arrival."""
        recorded: list[RecordedRequest] = self._ask("requests")
        return recorded

    def forget_requests(self) -> None:
        """Forgets the recorded requests."""
        self._ask("forget")

    def answer_waiting(self) -> None:
        """Answers each request that waits for this; see `CreatesWhenTold`."""
        self._ask("answer-waiting")

    def connections(self) -> int:
        """Returns the number of connections so far (over HTTPS, of finished handshakes)."""
        return int(self._ask("connections"))

    def close_idle_connections(self) -> None:
        """Closes every connection that is not waiting for an answer."""
        self._ask("close-idle")

    def stop(self) -> None:
        """Ends the server, within a time limit."""
        with contextlib.suppress(OSError):
            self._control.send(("stop",))
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=2.0)
        self._control.close()

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _ask(self, *command: object) -> Any:
        self._control.send(command)
        return self._receive(limit_seconds=10.0)

    def _receive(self, *, limit_seconds: float) -> Any:
        if not self._control.poll(limit_seconds):
            raise RuntimeError("the fault server does not answer")
        return self._control.recv()


# Everything below runs in the server's process.


class _State:
    def __init__(self, default: Behaviour, idle_close_seconds: float | None) -> None:
        self.default = default
        self.idle_close_seconds = idle_close_seconds
        self.scripts: dict[str, list[Behaviour]] = {}
        self.requests: list[RecordedRequest] = []
        self.connections = 0
        self.open: set[_Connection] = set()
        self.waiting: list[_Connection] = []
        self.snapshots = 0

    def next_behaviour(self, blob: str) -> Behaviour:
        script = self.scripts.get(blob)
        if not script:
            return self.default
        return script.pop(0) if len(script) > 1 else script[0]

    def created(self) -> bytes:
        """Returns the answer to a snapshot request that succeeds. No two have the same time."""
        self.snapshots += 1
        now = datetime.datetime.now(datetime.timezone.utc)
        snapshot = f"{now:%Y-%m-%dT%H:%M:%S}.{self.snapshots % 10_000_000:07d}Z"
        return _answer(201, "Created", [("ETag", '"0x8D1"'), ("x-ms-snapshot", snapshot)], b"")


class _Connection(asyncio.Protocol):
    def __init__(self, state: _State) -> None:
        self.state = state
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.number = -1
        self.received = b""
        self.is_busy = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.number = self.state.connections
        self.state.connections += 1
        self.state.open.add(self)
        self.wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        self.state.open.discard(self)
        self.cancel_timer()

    def data_received(self, data: bytes) -> None:
        self.received += data
        while not self.is_busy and b"\r\n\r\n" in self.received:
            head, _, rest = self.received.partition(b"\r\n\r\n")
            length = _content_length(head)
            if len(rest) < length:
                return
            self.received = rest[length:]
            self.cancel_timer()
            self.is_busy = True
            request = RecordedRequest(head + b"\r\n\r\n", rest[:length], time.monotonic_ns(), self.number)
            self.state.requests.append(request)
            self.react(self.state.next_behaviour(request.blob))

    def react(self, behaviour: Behaviour) -> None:
        if isinstance(behaviour, Creates):
            self.answer_after(behaviour.after_ms, self.state.created)
        elif isinstance(behaviour, CreatesWhenTold):
            self.state.waiting.append(self)
        elif isinstance(behaviour, Refuses):
            self.answer_after(behaviour.after_ms, functools.partial(_refusal, behaviour))
        elif isinstance(behaviour, AnswersByteByByte):
            self.drip(self.state.created(), behaviour.pause_ms / 1e3)
        elif isinstance(behaviour, Answers):
            self.transport.write(behaviour.raw)
            if behaviour.then_closes:
                self.transport.close()
            self.wait_for_request()
        elif isinstance(behaviour, Resets):
            raw = self.transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            assert isinstance(behaviour, NeverAnswers)

    def answer_after(self, after_ms: float, make: functools.partial[bytes] | Any) -> None:
        def answer() -> None:
            self.transport.write(make())
            self.wait_for_request()

        if after_ms:
            self.timer = self.loop.call_later(after_ms / 1e3, answer)
        else:
            answer()

    def drip(self, rest: bytes, pause_seconds: float) -> None:
        self.transport.write(rest[:1])
        if len(rest) == 1:
            self.wait_for_request()
        else:
            self.timer = self.loop.call_later(pause_seconds, self.drip, rest[1:], pause_seconds)

    def wait_for_request(self) -> None:
        self.is_busy = False
        self.timer = None
        if self.state.idle_close_seconds is not None:
            self.timer = self.loop.call_later(self.state.idle_close_seconds, self.transport.close)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _serve(
    control: Connection,
    certificates: Certificates | None,
    default: Behaviour,
    idle_close_seconds: float | None,
) -> None:
    # Ctrl-C reaches the whole group, but the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve_until_told(control, certificates, _State(default, idle_close_seconds)))


async def _serve_until_told(control: Connection, certificates: Certificates | None, state: _State) -> None:
    context = None
    if certificates:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates.server_certificate, certificates.server_key)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, ssl=context, backlog=1024)
    told_to_stop = asyncio.Event()

    def obey() -> None:
        try:
            command = control.recv()
        except EOFError:
            command = ("stop",)
        if command[0] == "stop":
            loop.remove_reader(control.fileno())
            told_to_stop.set()
        else:
            control.send(_obey(state, command))

    loop.add_reader(control.fileno(), obey)
    control.send(server.sockets[0].getsockname()[1])
    await told_to_stop.wait()
    server.close()
    for connection in list(state.open):
        connection.transport.abort()


def _obey(state: _State, command: Sequence[Any]) -> object:
    if command[0] == "script":
        state.scripts[command[1]] = list(command[2])
    elif command[0] == "requests":
        return list(state.requests)
    elif command[0] == "forget":
        state.requests.clear()
    elif command[0] == "answer-waiting":
        for connection in state.waiting:
            connection.transport.write(state.created())
            connection.wait_for_request()
        state.waiting.clear()
    elif command[0] == "connections":
        return state.connections
    elif command[0] == "close-idle":
        for connection in list(state.open):
            if not connection.is_busy:
                connection.transport.close()
    else:
        raise ValueError(f"no such command: {command[0]}")
    return None


def _refusal(behaviour: Refuses) -> bytes:
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{escape(behaviour.error_code)}</Code>"
        f"<Message>{escape(behaviour.message)}</Message></Error>"
    ).encode()
    headers = [("Content-Type", "application/xml"), ("x-ms-error-code", behaviour.error_code)]
    return _answer(behaviour.status, "Refused", headers, body)


def _answer(status: int, reason: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    now = email.utils.formatdate(usegmt=True)
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", f"Date: {now}"]
    lines += [f"Last-Modified: {now}", "x-ms-version: 2018-03-28", "Server: vmsnapshot-fault-server"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _blob_of(head: bytes) -> str:
    target = head.split(b" ", 2)[1]
    return target.partition(b"?")[0].rpartition(b"/")[2].decode()
