"""Every failure on the way to a blob is a sentence with a hint, and the reports' client has the same verdict.

The servers are real: ``openssl s_server`` with a fault each. No message contains what a library prints for
programmers.
"""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from typing import Any, Callable

import pytest

import vmsnapshot
from tests.conftest import StartFaultServer
from tests.support.tls_servers import (
    Server,
    answers_in_plain_http,
    authority,
    bare_server,
    closes_in_handshake,
    faulty_servers,
    issue,
    pem,
    resets_in_handshake,
    s_server,
)
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.causes import cause_of

# The words of the engine, and those of the client that sends the reports. `None`: that client connects.
# OpenSSL supports more curves than the engine, and takes an authority's certificate for a server's.
CAUSES: dict[str, tuple[str, str | None]] = {
    "cipher": ("supports no cipher suite", "supports no cipher suite"),
    "version": ("neither TLS 1.2 nor TLS 1.3", "neither TLS 1.2 nor TLS 1.3"),
    "group": ("supports no cipher suite, key exchange", None),
    "expired": ("expired at 20", "has expired"),
    "not-yet-valid": ("is not valid before 20", "is not valid yet"),
    "other-name": ("is for another name (other.example)", "is for another address"),
    "no-name": ("is for no name", "is for another address"),
    "self-signed": ("issuer of its certificate is unknown", "issuer of its certificate is unknown"),
    "authority-as-server": ("that of an authority (CA:TRUE)", None),
    "unknown-authority": ("issuer of its certificate is unknown", "issuer of its certificate is unknown"),
    "incomplete-chain": ("issuer of its certificate is unknown", "issuer of its certificate is unknown"),
    "wrong-signature": ("does not match the trusted issuer", "issuer of its certificate is unknown"),
    "weak-key-of-server": ("weaker than RSA with 2048 bits", "key of its certificate is too weak"),
    "weak-key-of-authority": ("weaker than RSA with 2048 bits", "key of an issuer of its certificate is too"),
    "name-constraints": ("(name constraints)", "(name constraints)"),
    "path-length": ("(path length)", "(path length)"),
    "issuer-is-no-authority": ("not an authority's", "not an authority's"),
    "other-purpose": ("(extended key usage)", "(extended key usage)"),
    "critical-extension": ("critical extension", "critical extension"),
    "client-certificate-1.2": ("demands a client certificate", "demands a client certificate"),
    "client-certificate-1.3": ("demands a client certificate", "demands a client certificate"),
}
# `HandshakeFailure`, `ssl.SSLContext`, `_ssl.c`, `[SSL: `, `os error 111`, `Errno`.
FOREIGN = re.compile(r"\b[A-Z]?[a-z]+[A-Z][A-Za-z]*|_ssl|\[SSL|os error|Errno|object at|::|[{}]")


@pytest.fixture(scope="module")
def servers() -> dict[str, Server]:
    return faulty_servers()


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """Where a test writes what the client trusts besides the system's roots."""
    return tmp_path / "trusted.pem"


def uri_of(port: int, scheme: str = "https") -> str:
    return f"{scheme}://127.0.0.1:{port}/a/b?sig=c2VjcmV0"


def engine_error(plan: vmsnapshot.Plan, uri: str, **options: Any) -> vmsnapshot.PrepareError:
    """Returns the error of a run that must fail before its window."""
    with pytest.raises(vmsnapshot.PrepareError) as caught:
        # The refusal of TLS 1.3 may come after the handshake.
        vmsnapshot.prepare(plan, [uri], connect_timeout=5, **options).run()
    checked(f"{caught.value}")
    checked(f"{caught.value.hint}")
    assert caught.value.kind == "network"
    return caught.value


def reports_cause(uri: str, ca_file: Path | None) -> str | None:
    """Returns why the client of the reports cannot ask `uri`, or `None` if it can."""

    async def ask() -> None:
        async with background.session().get(uri) as response:
            await response.read()

    with Background(ca_file=None if ca_file is None else str(ca_file)) as background:
        try:
            background.submit(ask()).result(timeout=20)
        except Exception as error:
            return checked(cause_of(error))
    return None


def checked(text: str) -> str:
    assert not FOREIGN.search(re.sub(r"`[^`]*`", "", text)), text
    assert "c2VjcmV0" not in text
    return text


@pytest.mark.parametrize("fault", CAUSES)
def test_tls_failure_names_its_cause_with_a_hint(
    plan: vmsnapshot.Plan, servers: dict[str, Server], trusted: Path, tmp_path: Path, fault: str
) -> None:
    server = servers[fault]
    ca_file = None
    if server.trusted is not None:
        ca_file = trusted
        ca_file.write_bytes(pem(server.trusted))
    of_engine, of_reports = CAUSES[fault]
    with s_server(tmp_path, server) as port:
        error = engine_error(plan, uri_of(port), ca_file=None if ca_file is None else str(ca_file))
        cause = reports_cause(uri_of(port), ca_file)
    assert (error.code, of_engine in str(error)) == ("tls-failed", True), str(error)
    assert str(error).startswith("could not set up TLS with `127.0.0.1` for blob `https://127.0.0.1:"), str(
        error
    )
    assert error.hint is not None
    assert (
        (cause is None) if of_reports is None else (of_reports in str(cause) and "(hint: " in str(cause))
    ), cause


def test_every_faulty_server_has_an_expected_cause(servers: dict[str, Server]) -> None:
    assert set(servers) == {*CAUSES, "expired-issuer"}


@pytest.mark.parametrize(
    ("serve", "of_engine", "of_reports"),
    [
        (closes_in_handshake, "closed the connection during the handshake", "closed the connection"),
        (resets_in_handshake, "reset the connection during the handshake", "connection reset by peer"),
        (answers_in_plain_http, "answer is not TLS", "answer is not TLS"),
    ],
)
def test_server_that_breaks_the_handshake_is_named(
    plan: vmsnapshot.Plan, serve: Callable[[socket.socket], None], of_engine: str, of_reports: str
) -> None:
    with bare_server(serve) as port:
        error = engine_error(plan, uri_of(port))
        cause = reports_cause(uri_of(port), None)
    assert (error.code, of_engine in str(error)) == ("tls-failed", True), str(error)
    assert error.hint is not None
    assert of_reports in str(cause)


def test_server_of_another_protocol_on_a_plain_port_is_named(plan: vmsnapshot.Plan) -> None:
    def alerts(connection: socket.socket) -> None:
        connection.recv(4096)
        # The alert of a TLS server to plain text.
        connection.sendall(bytes([21, 3, 1, 0, 2, 2, 70]))

    with bare_server(alerts) as port:
        report = vmsnapshot.prepare(plan, [uri_of(port, "http")], thaw_timeout=2).run()
        cause = reports_cause(uri_of(port, "http"), None)
    blob = report.blobs[0]
    assert (blob.outcome, blob.error_code) == ("unknown", "BadAnswer")
    assert "the server may speak TLS" in checked(str(blob.message))
    # An alert has no line end, for which the HTTP library of the reports waits.
    assert "closed the connection" in str(cause)


@pytest.mark.parametrize(
    "answer", ["", "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "\x15\x03\x01\x00\x02\x02\x46"]
)
def test_proxy_that_refuses_is_named_with_its_answer(plan: vmsnapshot.Plan, answer: str) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer.encode("latin-1"))

    with bare_server(refuse) as port:
        error = engine_error(plan, "https://a.example/a/b?sig=c2VjcmV0", proxy=f"http://127.0.0.1:{port}")
    assert error.code == "proxy-failed"
    assert f"through the proxy http://127.0.0.1:{port}: it " in str(error)


@pytest.mark.parametrize("echo", ["SeCrEt Pw0rd99", "SeCrEt%20Pw0rd99", "dXNlcjpTZUNyRXQgUHcwcmQ5OQ=="])
def test_password_that_a_proxy_repeats_is_in_no_message(plan: vmsnapshot.Plan, echo: str) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 407 No {echo}\r\n\r\n".encode())

    with bare_server(refuse) as port:
        proxy = f"http://user:SeCrEt%20Pw0rd99@127.0.0.1:{port}"
        error = engine_error(plan, "https://a.example/a/b?sig=c2VjcmV0", proxy=proxy)
    assert "(407 No ..." in str(error)
    assert echo[:20] not in f"{error!r} {error}"


def test_blob_behind_a_proxy_that_is_down_is_reached_directly_if_the_caller_allows_it(
    plan: vmsnapshot.Plan, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    down = "http://127.0.0.1:1"
    error = engine_error(plan, server.uri("disk"), proxy=down)
    assert (error.code, f"the proxy {down}" in str(error)) == ("connect-failed", True), str(error)
    with vmsnapshot.prepare(plan, [server.uri("disk")], proxy=down, unusable_proxy="direct") as session:
        assert len(session.warnings) == 1
        assert down in checked(session.warnings[0])
        report = session.run()
    assert report.blobs[0].outcome == "created"


def test_blob_is_reached_directly_if_its_proxy_goes_away_between_the_preparation_and_the_run(
    plan: vmsnapshot.Plan, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"127.0.0.1:{listener.getsockname()[1]}"
        session = vmsnapshot.prepare(
            plan, [server.uri("disk")], proxy=f"http://user:hunter2@{proxy}", unusable_proxy="direct"
        )
        listener.accept()[0].close()
    with session:
        assert session.warnings == []
        report = session.run()
    assert (report.blobs[0].outcome, report.blobs[0].attempts) == ("created", 1)
    (warning,) = session.warnings
    assert f"connected directly, because the proxy http://{proxy} failed: " in checked(warning)
    assert "hunter2" not in warning


def test_authority_without_critical_basic_constraints_is_trusted_for_disks_and_reports(
    plan: vmsnapshot.Plan, trusted: Path, tmp_path: Path
) -> None:
    inspecting = authority("inspecting proxy", is_critical=False)
    trusted.write_bytes(pem(inspecting))
    strict = ssl.create_default_context(cafile=str(trusted))
    # The default since Python 3.13.
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    with s_server(tmp_path, Server([issue("localhost", inspecting)])) as port:
        vmsnapshot.prepare(plan, [uri_of(port)], ca_file=str(trusted)).close()
        assert reports_cause(uri_of(port), trusted) is None
        address = ("127.0.0.1", port)
        with socket.create_connection(address, 10) as plain, pytest.raises(ssl.SSLCertVerificationError):
            strict.wrap_socket(plain, server_hostname="127.0.0.1")


def test_reports_trust_exactly_what_the_engine_trusts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Where OpenSSL itself looks does not matter: a Python may look in an empty directory.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "empty"))
    root = authority()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "not-hashed.pem").write_bytes(pem(root))
    assert len(vmsnapshot.trust_roots()) == 1
    with s_server(tmp_path, Server([issue("localhost", root)])) as port:
        assert reports_cause(uri_of(port), None) is None
    (tmp_path / "empty" / "not-hashed.pem").unlink()
    with pytest.raises(vmsnapshot.PrepareError) as caught:
        vmsnapshot.trust_roots()
    assert caught.value.code == "no-trust-roots"
