"""Azurite and the fault server answer as the tests that use them assume."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
import time
import urllib.parse
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient

from tests.conftest import StartFaultServer
from tests.support.azurite import Azurite
from tests.support.certificates import Certificates
from tests.support.fault_server import AnswersByteByByte, Creates, NeverAnswers, Refuses, Resets


def put_snapshot(
    uri: str, *, ca_file: Path | None = None, headers: dict[str, str] | None = None, timeout: float = 10.0
) -> tuple[int, dict[str, str], bytes]:
    """Sends the smallest snapshot request. Returns status, headers (with names in lower case) and body."""
    parts = urllib.parse.urlsplit(uri)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca_file)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        target = f"{parts.path}?{parts.query}&comp=snapshot"
        connection.request("PUT", target, headers={"Content-Length": "0", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_azurite_accepts_the_smallest_snapshot_request_over_http(azurite_http: Azurite) -> None:
    content = os.urandom(5 * 512)
    azurite_http.create_page_blob("http-disk", 8192, content)
    uri = azurite_http.sas_uri("http-disk")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)
    assert set(query) == {"sv", "sr", "sig", "st", "se", "sp"}
    assert query["sr"] == ["b"]
    status, headers, _ = put_snapshot(uri, headers={"x-ms-meta-RunId": "abc"})
    assert status == 201
    assert azurite_http.snapshots("http-disk") == [headers["x-ms-snapshot"]]
    snapshot = azurite_http.read_snapshot("http-disk", headers["x-ms-snapshot"])
    assert snapshot == content + bytes(8192 - len(content))
    metadata = azurite_http.snapshot_metadata("http-disk", headers["x-ms-snapshot"])
    assert metadata == {"RunId": "abc"}


def test_azurite_accepts_the_smallest_snapshot_request_over_https(azurite_https: Azurite) -> None:
    assert azurite_https.certificates is not None
    azurite_https.create_page_blob("https-disk")
    uri = azurite_https.sas_uri("https-disk").replace("127.0.0.1", "localhost")
    status, headers, _ = put_snapshot(uri, ca_file=azurite_https.certificates.ca_file)
    assert status == 201
    assert azurite_https.snapshots("https-disk") == [headers["x-ms-snapshot"]]


def test_azurite_refuses_a_sas_that_may_only_read(azurite_http: Azurite) -> None:
    azurite_http.create_page_blob("read-only-disk")
    status, headers, _ = put_snapshot(azurite_http.sas_uri("read-only-disk", "r"))
    assert (status, headers["x-ms-error-code"]) == (403, "AuthorizationPermissionMismatch")


def test_warm_up_leaves_nothing_behind(azurite_http: Azurite) -> None:
    azurite_http.warm_up(calls=5)
    assert azurite_http.snapshots("warm-up") == []


def test_fault_server_serves_all_calls_in_parallel(fault_server: StartFaultServer) -> None:
    server = fault_server(default=Creates(after_ms=50))
    parts = urllib.parse.urlsplit(server.uri("disk"))
    request = f"PUT {parts.path}?{parts.query}&comp=snapshot HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(32)]
    start = time.monotonic()
    for connection in connections:
        connection.sendall(request)
    answers = [connection.recv(4096) for connection in connections]
    seconds = time.monotonic() - start
    for connection in connections:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 201 ") for answer in answers)
    # One after another, they would take 1.6 s.
    assert 0.05 <= seconds < 0.8
    assert [recorded.head for recorded in server.requests()] == [request] * 32
    assert len({recorded.connection for recorded in server.requests()}) == 32


def test_fault_server_plays_a_script_and_repeats_its_end(fault_server: StartFaultServer) -> None:
    server = fault_server()
    server.script("disk", Refuses(503, "ServerBusy"), Refuses(409, "SnapshotCountExceeded"))
    statuses = [put_snapshot(server.uri("disk"))[0] for _ in range(3)]
    assert statuses == [503, 409, 409]
    _, headers, body = put_snapshot(server.uri("disk"))
    assert headers["x-ms-error-code"] == "SnapshotCountExceeded"
    assert b"<Code>SnapshotCountExceeded</Code>" in body
    assert put_snapshot(server.uri("other"))[0] == 201


def test_fault_server_works_with_the_sdk(fault_server: StartFaultServer) -> None:
    server = fault_server()
    with BlobClient.from_blob_url(server.uri("disk"), retry_total=0) as blob:
        assert str(blob.create_snapshot()["snapshot"]).endswith("Z")
        server.script("disk", Refuses(409, "SnapshotOperationRateExceeded"))
        with pytest.raises(HttpResponseError) as refused:
            blob.create_snapshot()
    assert refused.value.status_code == 409


@pytest.mark.parametrize("is_https", [False, True])
def test_fault_server_resets_instead_of_answering(
    fault_server: StartFaultServer, certificates: Certificates, is_https: bool
) -> None:
    server = fault_server(certificates if is_https else None)
    server.script("disk", Resets(), Creates())
    with pytest.raises(ConnectionResetError):
        put_snapshot(server.uri("disk"), ca_file=certificates.ca_file)
    assert put_snapshot(server.uri("disk"), ca_file=certificates.ca_file)[0] == 201


def test_fault_server_never_answers_or_answers_byte_by_byte(fault_server: StartFaultServer) -> None:
    server = fault_server()
    server.script("silent", NeverAnswers())
    server.script("slow", AnswersByteByByte(pause_ms=1.0))
    with pytest.raises(TimeoutError if sys.version_info >= (3, 10) else socket.timeout):
        put_snapshot(server.uri("silent"), timeout=0.3)
    assert put_snapshot(server.uri("slow"))[0] == 201


def test_fault_server_closes_idle_connections(fault_server: StartFaultServer) -> None:
    by_itself, when_told = fault_server(idle_close_seconds=0.2), fault_server()
    for server in (by_itself, when_told):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            until = time.monotonic() + 5
            while server.connections() < 1:
                assert time.monotonic() < until
            if server is when_told:
                server.close_idle_connections()
            assert connection.recv(1) == b""
