"""Servers that send without end, or before they are asked, and a run whose own thread does not go on.

Neither keeps anything frozen for longer than the thaw timeout, also without the watchdog.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

import vmsnapshot
from tests.engine.conftest import THAW_LIMIT_MS, Machine, held_ms
from tests.engine.runs import kill, outcomes
from tests.support import freezing
from tests.support.certificates import Certificates
from tests.support.command import Finished, SnapshotRun, read_status, run_of, take_snapshot
from tests.support.connect_proxy import connect_proxy
from tests.support.held_thread import held_thread

CONNECTIONS = 16
THAW_TIMEOUT_SECONDS = 1.0
# A run and its report after the thaw, on a busy machine.
GRACE_SECONDS = 1.5

CREATED = b"HTTP/1.1 201 Created\r\nx-ms-snapshot: %s\r\nContent-Length: 0\r\n\r\n"
EARLY = CREATED % b"2026-11-22T10:26:21.0000001Z"
ASKED = CREATED % b"2026-11-22T10:26:21.0000002Z"

Serve = Callable[[socket.socket], object]


@contextlib.contextmanager
def server(serve: Serve, certificates: Certificates | None = None, *, tickets: int = 2) -> Iterator[int]:
    """Runs `serve` in a thread per connection, and yields the port."""

    def handle(connection: socket.socket) -> None:
        connection.settimeout(10)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if certificates:
                # Of its own, so that no connection resumes the session of another: OpenSSL then sends
                # a single ticket.
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(certificates.server_certificate, certificates.server_key)
                context.num_tickets = tickets
                connection = stack.enter_context(context.wrap_socket(connection, server_side=True))
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Closing alone does not wake `accept`.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)


def read_request(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(4096)
        if not data:
            raise OSError("closed before a request")
        received += data


def flood(connection: socket.socket, start: bytes, endless: bytes) -> None:
    """Answers a request with `start`, and then with `endless` again and again."""
    read_request(connection)
    connection.sendall(start)
    block = endless * (65536 // len(endless))
    while True:
        connection.sendall(block)


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers": (b"HTTP/1.1 201 Created\r\n", b"X-Appliance: " + b"a" * 2000 + b"\r\n"),
    "one header": (b"HTTP/1.1 201 Created\r\nX-Appliance: ", b"a"),
    "status line": (b"HTTP/1.1 201 ", b"a"),
}


def uris(port: int, scheme: str = "http", count: int = CONNECTIONS) -> list[str]:
    return [f"{scheme}://127.0.0.1:{port}/disks/disk{index}?sig=c2VjcmV0" for index in range(count)]


def assert_thawed_by_the_run_in_time(machine: Machine, report: Any) -> None:
    assert (report["all_thawed"], outcomes(report)) == (True, {"thawed"})
    assert report["watchdog"]["fired"] is None
    for writer in machine.writers:
        assert writer.longest_stall_ms() < THAW_TIMEOUT_SECONDS * 1e3
    machine.assert_rcu_is_back()


def take(machine: Machine, blobs: list[str], *options: str | Path) -> tuple[Finished, float]:
    """Takes snapshots, with a call timeout that is longer than the window. Returns how long it took, too."""
    began = time.monotonic()
    call_timeout = "--call-timeout=10"
    finished = take_snapshot(
        machine.mount_points, blobs, call_timeout, *options, thaw_timeout=THAW_TIMEOUT_SECONDS
    )
    return finished, time.monotonic() - began


@pytest.mark.parametrize("what", ENDLESS)
def test_a_head_without_an_end_ends_its_call_and_the_window_in_time(machine: Machine, what: str) -> None:
    with server(functools.partial(flood, start=ENDLESS[what][0], endless=ENDLESS[what][1])) as port:
        finished, took = take(machine, uris(port))
    assert finished.status == 1
    report = finished.document
    assert_thawed_by_the_run_in_time(machine, report)
    assert took < THAW_TIMEOUT_SECONDS + GRACE_SECONDS
    for blob in report["blobs"]:
        assert (blob["outcome"], blob["error_code"], blob["attempts"]) == ("unknown", "AnswerTooLong", 1)
        assert "64 KiB" in blob["message"]


def test_interim_answers_without_end_over_tls_end_their_call(
    machine: Machine, certificates: Certificates
) -> None:
    serve = functools.partial(flood, start=b"", endless=ENDLESS["interim answers"][1])
    with server(serve, certificates) as port:
        finished, took = take(machine, uris(port, "https"), f"--ca-file={certificates.ca_file}")
    assert_thawed_by_the_run_in_time(machine, finished.document)
    assert took < THAW_TIMEOUT_SECONDS + GRACE_SECONDS
    assert {blob["error_code"] for blob in finished.document["blobs"]} == {"AnswerTooLong"}


def test_a_body_without_an_end_is_cut_off_and_its_refusal_is_reported(machine: Machine) -> None:
    start = b"HTTP/1.1 403 x\r\nx-ms-error-code: AuthorizationFailure\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(functools.partial(flood, start=start, endless=b"1\r\na\r\n")) as port:
        finished, took = take(machine, uris(port))
    assert_thawed_by_the_run_in_time(machine, finished.document)
    assert took < THAW_TIMEOUT_SECONDS + GRACE_SECONDS
    for blob in finished.document["blobs"]:
        assert (blob["outcome"], blob["error_code"]) == ("refused", "AuthorizationFailure")


def serve_after_handshake(connection: socket.socket) -> None:
    while True:
        read_request(connection)
        connection.sendall(ASKED)


@pytest.mark.parametrize(("tickets", "is_created"), [(100, True), (5000, False)])
def test_session_tickets_pass_up_to_a_limit(
    machine: Machine, certificates: Certificates, tickets: int, is_created: bool
) -> None:
    with server(serve_after_handshake, certificates, tickets=tickets) as port:
        blobs = uris(port, "https", count=2)
        finished, took = take(machine, blobs, f"--ca-file={certificates.ca_file}")
    assert_thawed_by_the_run_in_time(machine, finished.document)
    assert took < THAW_TIMEOUT_SECONDS + GRACE_SECONDS
    for blob in finished.document["blobs"]:
        assert (blob["outcome"] == "created") == is_created, blob


def test_a_proxy_whose_answer_has_no_end_is_an_error_before_the_freeze(plan: vmsnapshot.Plan) -> None:
    for start, endless in ENDLESS.values():
        serve = functools.partial(flood, start=start, endless=endless)
        with server(serve) as port, pytest.raises(vmsnapshot.PrepareError) as caught:
            blobs = ["https://a.example/a/b?sig=c2VjcmV0"]
            vmsnapshot.prepare(plan, blobs, proxy=f"http://127.0.0.1:{port}", connect_timeout=10)
        assert caught.value.code == "proxy-failed", caught.value


def test_a_proxy_for_plain_http_whose_answer_has_no_end_ends_its_call(machine: Machine) -> None:
    start, endless = ENDLESS["interim answers"]
    with server(functools.partial(flood, start=start, endless=endless)) as port:
        plan = vmsnapshot.plan(include=[f"mount={path}" for path in machine.mount_points])
        blobs = [f"http://a.example/disks/{index}?sig=c2VjcmV0" for index in range(CONNECTIONS)]
        proxy = f"http://127.0.0.1:{port}"
        report = vmsnapshot.prepare(plan, blobs, proxy=proxy, thaw_timeout=THAW_TIMEOUT_SECONDS).run()
    assert_thawed_by_the_run_in_time(machine, json.loads(report.to_json()))
    assert {blob.error_code for blob in report.blobs} == {"AnswerTooLong"}


# The run's own thread does not go on.


def test_the_run_thaws_at_its_deadline_although_its_own_thread_does_not_go_on(machine: Machine) -> None:
    with machine.open_window(thaw_timeout=4.0) as run:
        held_ns = time.monotonic_ns()
        with held_thread(run.process.pid):
            # The run's share of the thaw timeout is 2.8 s. The watchdog would thaw after 4 s.
            for writer in machine.writers:
                assert held_ms(writer, since_ns=held_ns) < 2800.0 + THAW_LIMIT_MS
        report = run.finish().document
    assert (report["all_thawed"], outcomes(report)) == (True, {"thawed"})
    machine.assert_rcu_is_back()
    assert report["blobs"][0]["outcome"] == "unknown"


def test_the_run_thaws_when_its_watchdog_is_killed_although_its_own_thread_does_not_go_on(
    machine: Machine,
) -> None:
    with machine.open_window(thaw_timeout=8.0) as run:
        watchdog_pid = run_of(read_status(), run.run_id())["watchdog_pid"]
        with held_thread(run.process.pid):
            killed_ns = kill(watchdog_pid)
            for writer in machine.writers:
                assert held_ms(writer, since_ns=killed_ns) < THAW_LIMIT_MS
        report = run.finish().document
    assert (report["all_thawed"], outcomes(report)) == (True, {"thawed"})
    assert (report["consistent"], report["freeze_doubt_code"]) == (False, "watchdog-lost")
    machine.assert_rcu_is_back()


def test_a_flood_and_the_end_of_the_watchdog_leave_nothing_frozen(machine: Machine) -> None:
    begun, may_flood = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        begun.set()
        assert may_flood.wait(10)
        while True:
            connection.sendall(ENDLESS["interim answers"][1] * 2000)

    with contextlib.ExitStack() as stack:
        blobs = uris(stack.enter_context(server(serve)))
        options = "--call-timeout=10"
        run = stack.enter_context(SnapshotRun(machine.mount_points, blobs, options, thaw_timeout=6.0))
        assert begun.wait(15)
        watchdog = os.pidfd_open(run_of(read_status(), run.run_id())["watchdog_pid"])
        may_flood.set()
        time.sleep(0.2)
        killed_ns = time.monotonic_ns()
        # The run, and with it the watchdog, may have ended before.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(watchdog, signal.SIGKILL)
        os.close(watchdog)
        run.finish()
    for writer in machine.writers:
        writer.wait_until_writing()
        stuck = [stall for stall in writer.stalls(since_ns=killed_ns) if stall.start_ns <= killed_ns]
        for stall in stuck:
            assert (stall.start_ns - killed_ns) / 1e6 + stall.length_ms < THAW_LIMIT_MS
    for mount_point in machine.mount_points:
        assert not freezing.is_frozen(mount_point)


# Answers that come too early.


class EarlyAnswer:
    """Answers when it is told to, on connections without a request. On others it answers every request."""

    def __init__(self) -> None:
        self.idle: list[socket.socket] = []

    def __call__(self, connection: socket.socket) -> None:
        self.idle.append(connection)
        read_request(connection)
        if connection in self.idle:
            self.idle.remove(connection)
            connection.sendall(ASKED)
        connection.recv(1)

    def answer(self) -> None:
        """Answers on every idle connection, and returns when the client's kernel has the bytes."""
        early, self.idle = self.idle, []
        for connection in early:
            connection.sendall(EARLY)
        time.sleep(0.05)


@pytest.mark.parametrize("way", ["http", "https", "proxy for http", "tunnel of a proxy"])
def test_an_answer_before_the_request_does_not_count(
    machine: Machine, certificates: Certificates, way: str
) -> None:
    early = EarlyAnswer()
    is_tls = way in ("https", "tunnel of a proxy")
    options: dict[str, Any] = {"ca_file": str(certificates.ca_file)} if is_tls else {}

    def answer_before_the_window(phase: str) -> None:
        if phase == "freeze":
            early.answer()

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(server(early, certificates if is_tls else None))
        if way == "proxy for http":
            options["proxy"] = f"http://127.0.0.1:{port}"
        elif way == "tunnel of a proxy":
            options["proxy"] = f"http://{stack.enter_context(connect_proxy()).address}"
        plan = vmsnapshot.plan(include=[f"mount={path}" for path in machine.mount_points])
        blobs = uris(port, "https" if is_tls else "http", count=3)
        report = vmsnapshot.prepare(plan, blobs, progress=answer_before_the_window, **options).run()
    for blob in report.blobs:
        assert (blob.outcome, blob.attempts, blob.message) == ("created", 1, None)
        assert blob.snapshot == "2026-11-22T10:26:21.0000002Z"
