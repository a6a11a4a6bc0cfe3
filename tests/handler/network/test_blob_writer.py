"""Writes the status and log blobs, to a real blob service and to one that fails on request."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.azurite import CONTAINER, Azurite
from tests.support.broken_proxy import WAYS, broken_proxy
from tests.support.certificates import Certificates
from tests.support.connect_proxy import connect_proxy
from tests.support.host_service import (
    NEVER_MS,
    SIGNATURE,
    USUAL,
    Answer,
    HostService,
    Script,
    Usual,
    blob_error,
)
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.blob_writer import BlobWriter, WriteResult, may_be_mended
from vmsnapshot.handler.network.proxies import OptionalProxy
from vmsnapshot.handler.secret import SasUri

MIB = 1024 * 1024
STATUS = '[{"status": {"name": "größer — 日本語"}}]'.encode()
# aiohttp warns that a body above 1 MiB may delay other tasks of the loop. There are no other tasks.
large_body = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
_numbers = itertools.count()


@pytest.fixture
def background() -> Iterator[Background]:
    with Background() as background:
        yield background


@pytest.fixture
def name() -> str:
    """A unique name of a blob. It has a blank and a slash, which the SDK must quote correctly."""
    return f"status blobs/job {next(_numbers)}"


def writer_of(
    background: Background, uri: str, *, may_cut_front: bool = False, proxy: str | None = None
) -> BlobWriter:
    return BlobWriter(
        SasUri(uri), session=background.session, may_cut_front=may_cut_front, proxy=OptionalProxy(proxy)
    )


def write(
    background: Background,
    writer: BlobWriter,
    text: bytes = STATUS,
    *,
    may_replace: bool = False,
    limit_seconds: float = 20.0,
) -> WriteResult:
    writing = writer.write(text, may_replace=may_replace, limit_seconds=limit_seconds)
    return background.submit(writing).result(timeout=40)


def uri_of(azurite: Azurite, name: str) -> str:
    return azurite.sas_uri(name).replace(" ", "%20")


def read(azurite: Azurite, name: str) -> bytes:
    content: bytes = azurite.service.get_blob_client(CONTAINER, name).download_blob().readall()
    return content


def create_block_blob(azurite: Azurite, name: str, content: bytes = b"") -> None:
    azurite.service.get_blob_client(CONTAINER, name).upload_blob(content)


def report(task_id: str, code: str) -> bytes:
    return json.dumps([{"version": "1.0", "status": {"taskId": task_id, "code": code}}]).encode()


# A real blob service.


def test_empty_block_blob_is_written_again_and_again(
    azurite_http: Azurite, background: Background, name: str
) -> None:
    create_block_blob(azurite_http, name)
    writer = writer_of(background, uri_of(azurite_http, name))
    assert write(background, writer, b"first, and longer than what follows") == WriteResult(True)
    assert write(background, writer) == WriteResult(True)
    assert read(azurite_http, name) == STATUS


def test_block_blob_is_written_over_https(
    azurite_https: Azurite, certificates: Certificates, name: str
) -> None:
    create_block_blob(azurite_https, name)
    with Background(ca_file=str(certificates.ca_file)) as background:
        writer = writer_of(background, uri_of(azurite_https, name))
        assert write(background, writer) == WriteResult(True)
    assert read(azurite_https, name) == STATUS


def test_authority_may_be_named_by_the_environment(
    azurite_https: Azurite, certificates: Certificates, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_block_blob(azurite_https, name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca_file))
    with Background() as background:
        writer = writer_of(background, uri_of(azurite_https, name))
        assert write(background, writer) == WriteResult(True)


def test_nothing_is_sent_to_a_server_of_an_unknown_authority(
    azurite_https: Azurite, background: Background, name: str
) -> None:
    create_block_blob(azurite_https, name)
    result = write(background, writer_of(background, uri_of(azurite_https, name)))
    assert result.failed
    assert read(azurite_https, name) == b""


def test_block_blob_that_holds_something_at_first_is_never_written(
    azurite_http: Azurite, background: Background, name: str
) -> None:
    create_block_blob(azurite_http, name, b"another run's result")
    writer = writer_of(background, uri_of(azurite_http, name))
    result = write(background, writer)
    assert not result.written
    assert not result.failed
    assert result.reason
    azurite_http.service.get_blob_client(CONTAINER, name).upload_blob(b"", overwrite=True)
    assert not write(background, writer).written
    assert read(azurite_http, name) == b""


def test_block_blob_that_holds_something_is_written_when_the_caller_knows_what(
    azurite_http: Azurite, background: Background, name: str
) -> None:
    create_block_blob(azurite_http, name, b"our own worker's unfinished report")
    writer = writer_of(background, uri_of(azurite_http, name))
    assert write(background, writer, may_replace=True) == WriteResult(True)
    assert read(azurite_http, name) == STATUS


def test_missing_blob_is_not_made(azurite_http: Azurite, background: Background, name: str) -> None:
    result = write(background, writer_of(background, uri_of(azurite_http, name)))
    assert result.failed
    assert result.reason is not None and "404" in result.reason
    assert not azurite_http.service.get_blob_client(CONTAINER, name).exists()


def test_refused_signature_is_a_failure_without_the_signature(
    azurite_http: Azurite, background: Background, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    create_block_blob(azurite_http, name)
    uri = uri_of(azurite_http, name)
    begin = uri.index("sig=") + 4
    wrong = uri[:begin] + "AAAA" + uri[begin + 4 :]
    result = write(background, writer_of(background, wrong))
    assert result.failed
    assert result.reason is not None and "403" in result.reason
    for text in (result.reason, caplog.text):
        assert "sig=" not in text
        assert wrong[begin : begin + 20] not in text


@pytest.mark.parametrize("size_bytes", [0, 512, 4096, 64 * 1024])
def test_page_blob_holds_the_text_blanks_to_the_page_and_zeros(
    azurite_http: Azurite, background: Background, name: str, size_bytes: int
) -> None:
    azurite_http.create_page_blob(name, size_bytes, size_bytes * b"x")
    writer = writer_of(background, uri_of(azurite_http, name))
    text = b"first " * 200
    padded = text + b" " * (-len(text) % 512)
    assert write(background, writer, text) == WriteResult(True)
    assert read(azurite_http, name) == padded + bytes(max(size_bytes - len(padded), 0))
    assert write(background, writer) == WriteResult(True)
    content = read(azurite_http, name)
    assert content.rstrip(b"\0").rstrip(b" ") == STATUS
    assert content[len(STATUS) : 512] == b" " * (512 - len(STATUS))
    assert not any(content[512:])


@large_body
def test_long_log_is_written_to_a_page_blob_in_chunks_that_the_service_takes(
    azurite_http: Azurite, background: Background, name: str
) -> None:
    log = b"".join(b"%08d  Info  a line of the log \n" % number for number in range(5 * MIB // 32))
    azurite_http.create_page_blob(name, 1024)
    writer = writer_of(background, uri_of(azurite_http, name), may_cut_front=True)
    assert write(background, writer, log) == WriteResult(True)
    assert read(azurite_http, name).rstrip(b" \0") == log.rstrip(b" ")


@large_body
def test_long_log_is_written_to_a_block_blob_whole(
    azurite_http: Azurite, background: Background, name: str
) -> None:
    log = "größer\n".encode() * (5 * MIB // 8)
    create_block_blob(azurite_http, name)
    writer = writer_of(background, uri_of(azurite_http, name), may_cut_front=True)
    assert write(background, writer, log) == WriteResult(True)
    assert read(azurite_http, name) == log


def test_append_blob_is_refused_by_name(azurite_http: Azurite, background: Background, name: str) -> None:
    azurite_http.service.get_blob_client(CONTAINER, name).create_append_blob()
    result = write(background, writer_of(background, uri_of(azurite_http, name)))
    assert result.failed
    assert result.reason is not None and "AppendBlob" in result.reason


@pytest.mark.parametrize("is_page_blob", [False, True])
def test_transitioning_report_of_the_task_is_known_as_unfinished(
    azurite_http: Azurite, background: Background, name: str, is_page_blob: bool
) -> None:
    if is_page_blob:
        azurite_http.create_page_blob(name, 4096)
    else:
        create_block_blob(azurite_http, name)
    uri = uri_of(azurite_http, name)

    def is_to_be_mended(task_id: str) -> bool | None:
        asking = may_be_mended(SasUri(uri), task_id, session=background.session)
        return background.submit(asking).result(timeout=20)

    # The blob is empty if the worker was killed before it wrote anything.
    assert is_to_be_mended("T-1")
    writer = writer_of(background, uri)
    assert write(background, writer, report("T-1", "4")).written
    assert is_to_be_mended("T-1")
    assert not is_to_be_mended("T-2")
    assert write(background, writer, report("T-1", "1")).written
    assert not is_to_be_mended("T-1")


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b"null", b'[{"status": null}]', b"\xff", b'[{"status": {}}]']
)
def test_blob_that_holds_no_report_is_not_known_as_unfinished(
    service: HostService, background: Background, content: bytes
) -> None:
    service.create_block_blob("status", content)
    asking = may_be_mended(SasUri(service.uri("status")), "T-1", session=background.session)
    assert not background.submit(asking).result(timeout=20)


def test_blob_that_cannot_be_read_is_not_known_as_unfinished(
    service: HostService, background: Background
) -> None:
    service.script("silent", Answer(after_ms=NEVER_MS))
    for uri, limit_seconds in (
        (service.uri("missing"), 10.0),
        ("no uri", 10.0),
        (service.uri("silent"), 0.5),
    ):
        asking = may_be_mended(SasUri(uri), "T-1", session=background.session, limit_seconds=limit_seconds)
        assert background.submit(asking).result(timeout=20) is None


# Requests, and a service that fails.


def test_write_is_a_look_and_a_put_on_one_connection(service: HostService, background: Background) -> None:
    service.create_block_blob("status")
    writer = writer_of(background, service.uri("status"))
    write(background, writer)
    write(background, writer)
    requests = service.requests()
    assert [request.operation for request in requests] == ["HEAD", "PUT", "HEAD", "PUT"]
    assert len({request.connection for request in requests}) == 1
    assert all(request.has_signature for request in requests)
    assert all(request.header("x-ms-version") == "2019-02-02" for request in requests)
    assert requests[1].header("x-ms-blob-type") == "BlockBlob"
    assert requests[1].body == STATUS


def test_requests_do_not_tell_about_the_machine(service: HostService, background: Background) -> None:
    service.create_block_blob("status")
    write(background, writer_of(background, service.uri("status")))
    agents = {request.header("User-Agent") for request in service.requests()}
    assert agents == {"VMSnapshot"}


@pytest.mark.parametrize("separator", ["&", "", "%3F", "%3f"])
def test_uri_that_has_lost_its_question_mark_is_an_error_without_a_request(
    service: HostService, background: Background, separator: str
) -> None:
    uri = service.uri("status").replace("?", separator)
    result = write(background, writer_of(background, uri))
    assert result.failed and result.reason is not None
    assert "lost the `?`" in result.reason
    assert SIGNATURE not in result.reason
    asking = may_be_mended(SasUri(uri), "T-1", session=background.session)
    assert background.submit(asking).result()
    assert service.requests() == []


def test_content_type_is_kept(service: HostService, background: Background) -> None:
    service.create_block_blob("status", content_type="text/plain; charset=utf-8")
    write(background, writer_of(background, service.uri("status")))
    assert service.content_type("status") == "text/plain; charset=utf-8"


def test_unknown_parameters_of_a_sas_are_sent_as_they_are(
    service: HostService, background: Background
) -> None:
    service.create_block_blob("status")
    write(background, writer_of(background, f"{service.uri('status')}&xyz=a%2Bb"))
    assert [request.query["xyz"] for request in service.requests()] == ["a+b", "a+b"]
    assert service.content("status") == STATUS


def test_page_blob_is_grown_and_cleared_before_it_is_written(
    service: HostService, background: Background
) -> None:
    service.create_page_blob("status", 512)
    assert write(background, writer_of(background, service.uri("status")), b"x" * 700).written
    look, grow, clear, update = service.requests()
    assert look.operation == "HEAD"
    assert (grow.operation, grow.body) == ("PUT properties", b"")
    assert grow.header("x-ms-blob-content-length") == "1024"
    assert grow.header("Content-Length") in (None, "0")
    assert (clear.operation, clear.header("x-ms-page-write"), clear.body) == ("PUT page", "clear", b"")
    assert (clear.header("x-ms-range") or clear.header("Range")) == "bytes=0-511"
    assert (update.operation, update.header("x-ms-page-write")) == ("PUT page", "update")
    assert (update.header("x-ms-range") or update.header("Range")) == "bytes=0-1023"
    assert len(service.content("status")) == 1024


def test_status_that_does_not_fit_is_not_cut_and_what_is_there_stays(
    service: HostService, background: Background
) -> None:
    service.create_page_blob("status", 512)
    writer = writer_of(background, service.uri("status"))
    assert write(background, writer).written
    service.script("status", blob_error(403, "AuthorizationPermissionMismatch"), operation="PUT properties")
    result = write(background, writer, b"x" * 700)
    assert result.failed
    assert result.reason is not None and "cannot grow" in result.reason
    assert service.content("status").rstrip(b" ") == STATUS


def test_log_that_does_not_fit_loses_its_first_lines(service: HostService, background: Background) -> None:
    service.create_page_blob("log", 1024)
    service.script("log", blob_error(403, "AuthorizationPermissionMismatch"), operation="PUT properties")
    lines = [f"{number:04d}  Info  größer \n".encode() for number in range(200)]
    writer = writer_of(background, service.uri("log"), may_cut_front=True)
    assert write(background, writer, b"".join(lines)).written
    kept = service.content("log").rstrip(b" \0")
    count = kept.count(b"\n")
    assert kept == b"".join(lines[-count:])
    assert 1024 - len(lines[0]) < len(kept) <= 1024


def test_growing_is_tried_again_after_a_servers_fault(service: HostService, background: Background) -> None:
    service.create_page_blob("status", 512)
    service.script("status", blob_error(503, "ServerBusy"), USUAL, operation="PUT properties")
    assert write(background, writer_of(background, service.uri("status")), b"x" * 700).written


@pytest.mark.parametrize(
    "failure",
    [
        blob_error(503, "ServerBusy"),
        blob_error(500, "InternalError"),
        Answer(429),
        Answer(drops_connection=True),
    ],
)
@pytest.mark.parametrize("operation", ["HEAD", "PUT"])
def test_transient_failure_is_tried_again(
    service: HostService, background: Background, failure: Script, operation: str
) -> None:
    service.create_block_blob("status")
    service.script("status", failure, failure, USUAL, operation=operation)
    assert write(background, writer_of(background, service.uri("status"))) == WriteResult(True)
    assert service.content("status") == STATUS


def test_pauses_between_tries_grow(service: HostService, background: Background) -> None:
    service.create_block_blob("status")
    service.script("status", blob_error(503, "ServerBusy"))
    result = write(background, writer_of(background, service.uri("status")))
    assert result.failed
    assert result.reason is not None and "503 ServerBusy" in result.reason
    first, second, third = (request.at_ns for request in service.requests())
    assert 0.2e9 <= second - first < third - second
    assert third - second >= 0.6e9


@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_refusal_is_not_tried_again(service: HostService, background: Background, status: int) -> None:
    service.create_block_blob("status")
    service.script("status", Answer(status), operation="PUT")
    result = write(background, writer_of(background, service.uri("status")))
    assert result.failed
    assert result.reason is not None and str(status) in result.reason
    assert len(service.requests()) == 2


def test_redirection_is_not_followed(service: HostService, background: Background) -> None:
    service.create_block_blob("elsewhere")
    location = ("Location", service.uri("elsewhere"))
    service.script("status", Answer(307, headers=(location,)))
    result = write(background, writer_of(background, service.uri("status")))
    assert result.failed
    assert [request.blob for request in service.requests()] == ["status"]


def test_write_whose_answer_was_lost_is_still_ours(service: HostService, background: Background) -> None:
    """The writer does not take the content of such a write for the result of another run."""
    service.create_block_blob("status")
    service.script("status", Answer(drops_connection=True), operation="PUT")
    writer = writer_of(background, service.uri("status"))
    assert write(background, writer).failed
    service.create_block_blob("status", b"what the lost write wrote")
    assert write(background, writer).failed
    service.script("status", USUAL, operation="PUT")
    assert write(background, writer).written


def test_refused_first_write_leaves_what_another_run_writes_then_alone(
    service: HostService, background: Background
) -> None:
    service.create_block_blob("status")
    service.script("status", blob_error(403, "AuthorizationFailure"), operation="PUT")
    writer = writer_of(background, service.uri("status"))
    assert write(background, writer).failed
    service.create_block_blob("status", b"another run's result")
    service.script("status", USUAL, operation="PUT")
    result = write(background, writer)
    assert not result.written
    assert not result.failed
    assert service.content("status") == b"another run's result"


def test_blob_that_is_deleted_after_the_look_is_not_made_anew(
    service: HostService, background: Background
) -> None:
    head = (("x-ms-blob-type", "BlockBlob"), ("ETag", '"0x0"'), ("Content-Length", "0"))
    service.script("status", Answer(200, headers=head), operation="HEAD")
    result = write(background, writer_of(background, service.uri("status")))
    assert result.failed
    with pytest.raises(KeyError):
        service.content("status")


def test_service_that_names_no_etag_is_still_asked_to_make_no_blob(
    service: HostService, background: Background
) -> None:
    head = (("x-ms-blob-type", "BlockBlob"), ("Content-Length", "0"))
    service.script("status", Answer(200, headers=head), operation="HEAD")
    assert write(background, writer_of(background, service.uri("status"))).failed
    service.create_block_blob("status")
    assert write(background, writer_of(background, service.uri("status"))).written


def test_blob_that_another_run_writes_between_look_and_put_is_left_alone(
    service: HostService, background: Background
) -> None:
    empty = (("x-ms-blob-type", "BlockBlob"), ("ETag", '"0x0"'), ("Content-Length", "0"))
    service.create_block_blob("status", b"another run's result")
    service.script("status", Answer(200, headers=empty), USUAL, operation="HEAD")
    result = write(background, writer_of(background, service.uri("status")))
    assert not result.written
    assert not result.failed
    assert service.content("status") == b"another run's result"


def test_service_that_never_answers_costs_no_more_than_the_limit(
    service: HostService, background: Background
) -> None:
    service.create_block_blob("status")
    service.script("status", Answer(after_ms=NEVER_MS), operation="PUT")
    began = time.monotonic()
    result = write(background, writer_of(background, service.uri("status")), limit_seconds=0.8)
    assert time.monotonic() - began < 5.0
    assert result.failed
    assert result.reason is not None and "0.8 s" in result.reason


def test_cancelled_write_is_followed_by_the_next(service: HostService, background: Background) -> None:
    service.create_block_blob("status")
    service.script("status", Usual(after_ms=300.0), USUAL, operation="PUT")
    writer = writer_of(background, service.uri("status"))
    transitioning = background.submit(writer.write(b"transitioning"))
    service.wait_for("PUT")
    transitioning.cancel()
    assert write(background, writer) == WriteResult(True)
    with pytest.raises(concurrent.futures.CancelledError):
        transitioning.result(timeout=5)
    assert service.content("status") == STATUS


def test_writes_are_done_in_the_order_of_the_calls(service: HostService, background: Background) -> None:
    service.create_block_blob("status")
    service.script("status", Usual(after_ms=300.0), USUAL, operation="PUT")
    writer = writer_of(background, service.uri("status"))
    first = background.submit(writer.write(b"first"))
    second = background.submit(writer.write(b"second"))
    assert first.result(timeout=20).written
    assert second.result(timeout=20).written
    assert service.content("status") == b"second"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://127.0.0.1:1/disks/status?sv=1&sig={SIGNATURE}",
        f"http://127.0.0.1:99999/disks/status?sv=1&sig={SIGNATURE}",
        f"http://no-such-host.invalid/disks/status?sv=1&sig={SIGNATURE}",
        f"http://127.0.0.1:1/status?sv=1&sig={SIGNATURE}",
        f"https://[half/disks/status?sv=1&sig={SIGNATURE}",
        f"no uri?sig={SIGNATURE}",
        f"ftp://127.0.0.1/disks/status?sig={SIGNATURE}",
        "",
    ],
)
def test_unusable_uri_is_a_failure_that_does_not_show_the_signature(
    background: Background, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    result = write(background, writer_of(background, uri))
    assert result.failed
    assert result.reason
    for text in (result.reason, caplog.text):
        assert SIGNATURE not in text
        assert "c2VjcmV0" not in text


def test_nothing_is_logged_by_the_sdk(
    service: HostService, background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    service.create_block_blob("status")
    service.script("status", Answer(500, b"odd"), USUAL)
    assert write(background, writer_of(background, service.uri("status"))).written
    assert [record for record in caplog.records if record.name.startswith(("azure", "aiohttp"))] == []


def test_proxy_is_used_when_there_is_one(service: HostService, background: Background) -> None:
    # The service is not a proxy, but it records what the client asks of a proxy.
    uri = f"http://acct.blob.example/disks/status?sig={SIGNATURE}"
    writer = writer_of(background, uri, proxy=f"http://{service.address}")
    assert write(background, writer).failed
    request = service.requests()[0]
    assert request.header("Host") == "acct.blob.example"


def test_blob_over_https_is_written_through_a_tunnel(
    azurite_https: Azurite, certificates: Certificates, name: str
) -> None:
    create_block_blob(azurite_https, name)
    ca_file = str(certificates.ca_file)
    with connect_proxy(wants_user_agent=True) as proxy, Background(ca_file=ca_file) as background:
        writer = writer_of(background, uri_of(azurite_https, name), proxy=f"http://{proxy.address}")
        assert write(background, writer) == WriteResult(True)
    assert proxy.request_lines == [f"CONNECT {azurite_https.endpoint.partition('://')[2]} HTTP/1.1"]
    assert read(azurite_https, name) == STATUS


@pytest.mark.parametrize(
    "refusal", [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", None]
)
def test_blob_is_written_directly_with_a_remark_if_the_proxy_refuses_or_is_down(
    azurite_https: Azurite, certificates: Certificates, name: str, refusal: bytes | None
) -> None:
    create_block_blob(azurite_https, name)
    ca_file = str(certificates.ca_file)
    with connect_proxy(refusal=refusal) as refusing, Background(ca_file=ca_file) as background:
        proxy = f"http://user:hunter2@{refusing.address if refusal else '127.0.0.1:1'}"
        writer = writer_of(background, uri_of(azurite_https, name), proxy=proxy)
        first, second = write(background, writer), write(background, writer)
    assert first.written
    assert ("answered 407 Proxy" if refusal else "connection refused") in str(first.remark)
    assert "hunter2" not in str(first.remark)
    # Later writes do not try the proxy again.
    assert second == WriteResult(True)
    assert len(refusing.heads) == (1 if refusal else 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_uploads_leave_out_a_proxy_that_accepts_connections_and_is_none(
    azurite_http: Azurite,
    azurite_https: Azurite,
    certificates: Certificates,
    name: str,
    scheme: str,
    way: str,
) -> None:
    azurite = azurite_https if scheme == "https" else azurite_http
    create_block_blob(azurite, name)
    create_block_blob(azurite, f"{name} log")
    uri = uri_of(azurite, name)
    with broken_proxy(way) as broken, Background(ca_file=str(certificates.ca_file)) as background:
        background.warm_up().result(timeout=20)
        proxy = OptionalProxy(broken.uri)
        status, log = (
            BlobWriter(SasUri(uri_of(azurite, blob)), session=background.session, proxy=proxy)
            for blob in (name, f"{name} log")
        )
        first = write(background, status, limit_seconds=4.0)
        tries = len(broken.connections)
        began = time.monotonic()
        others = [write(background, writer, limit_seconds=4.0) for writer in (status, log)]
        took_seconds = time.monotonic() - began
        asking = may_be_mended(SasUri(uri), "T-1", session=background.session, proxy=proxy)
        assert background.submit(asking).result(timeout=20) is False
    assert first.written, first
    assert "connected directly, because the proxy failed: " in str(first.remark)
    assert "hunter2" not in str(first.remark)
    assert broken.uri.rpartition("@")[2] in str(first.remark)
    # The proxy costs its share of the time once, and not once per write or blob.
    assert others == [WriteResult(True), WriteResult(True)]
    assert took_seconds < 1.5
    assert len(broken.connections) == tries
    assert read(azurite, name) == STATUS


def test_proxy_that_has_worked_is_kept_after_an_upload_that_takes_too_long(
    service: HostService, background: Background
) -> None:
    # The service answers as a proxy would. It is the only way: nothing resolves its name.
    proxy = OptionalProxy(f"http://{service.address}")
    log, status = (
        BlobWriter(
            SasUri(f"http://acct.blob.example/disks/{blob}?sig={SIGNATURE}"),
            session=background.session,
            proxy=proxy,
        )
        for blob in ("log", "status")
    )
    service.create_block_blob("log")
    service.create_block_blob("status")
    service.script("log", Answer(after_ms=NEVER_MS), operation="PUT")
    result = write(background, log, limit_seconds=2.0)
    assert result.failed
    assert "did not answer in time" in str(result.reason)
    assert "; directly: " in str(result.reason)
    assert write(background, status) == WriteResult(True)
    assert service.content("status") == STATUS


@pytest.mark.parametrize("way", WAYS)
def test_status_of_a_killed_job_is_read_directly_if_the_proxy_is_none(
    service: HostService, background: Background, way: str
) -> None:
    service.create_block_blob("status", b"")
    with broken_proxy(way) as broken:
        proxy = OptionalProxy(broken.uri)
        uri = SasUri(service.uri("status"))
        asking = may_be_mended(uri, "T-1", session=background.session, proxy=proxy, limit_seconds=4.0)
        assert background.submit(asking).result(timeout=20) is True
    assert proxy.uri is None


def test_proxy_is_not_left_out_when_the_server_behind_it_is_not_trusted(
    azurite_https: Azurite, background: Background, name: str
) -> None:
    create_block_blob(azurite_https, name)
    with connect_proxy() as working:
        proxy = OptionalProxy(f"http://{working.address}")
        uri = SasUri(uri_of(azurite_https, name))
        result = write(background, BlobWriter(uri, session=background.session, proxy=proxy))
    assert result.failed
    assert "the issuer of its certificate is unknown" in str(result.reason)
    assert "directly" not in str(result.reason)
    assert proxy.uri is not None
    assert all(line.startswith("CONNECT ") for line in working.request_lines)
    assert working.request_lines


@pytest.mark.parametrize("status", [403, 404, 502])
def test_proxy_is_not_left_out_for_an_answer_of_the_service(
    service: HostService, background: Background, status: int
) -> None:
    # The service is not a proxy, but it answers what it is asked in the form for a proxy.
    service.script("status", Answer(status))
    proxy = OptionalProxy(f"http://{service.address}")
    uri = SasUri(f"http://acct.blob.example/disks/status?sig={SIGNATURE}")
    assert write(background, BlobWriter(uri, session=background.session, proxy=proxy)).failed
    assert proxy.uri is not None


def test_failed_write_names_the_proxy_and_both_causes(background: Background) -> None:
    uri = f"https://127.0.0.1:1/disks/status?sig={SIGNATURE}"
    result = write(background, writer_of(background, uri, proxy="http://127.0.0.1:2"))
    assert result.failed
    assert "to the proxy http://127.0.0.1:2: connection refused; directly: could not" in str(result.reason)


@pytest.mark.usefixtures("compiled_engine")
def test_making_a_writer_imports_nothing_that_is_slow() -> None:
    program = (
        "import sys, vmsnapshot.handler.network.blob_writer as blobs, vmsnapshot.handler.secret as secret\n"
        "blobs.BlobWriter(secret.SasUri('http://127.0.0.1:1/a/b'), session=lambda: None)\n"
        "print('asyncio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "False"
