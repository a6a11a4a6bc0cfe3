"""TLS servers with one fault each: `openssl s_server`, with a chain of certificates made for the fault."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Union

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = Union[ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey]

_NOW = datetime.datetime.now(datetime.timezone.utc)
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: Key


@dataclass(frozen=True)
class Server:
    """A server to start: `chain` is what it sends, the first being its own."""

    chain: Sequence[Issued]
    trusted: Issued | None = None
    """What the client trusts besides the system's roots."""
    options: Sequence[str] = field(default=())


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def issue(
    name: str,
    issuer: Issued | None = None,
    *,
    is_ca: bool = False,
    is_critical: bool = True,
    path_length: int | None = None,
    names: Sequence[str] = ("127.0.0.1", "localhost"),
    begins: datetime.datetime = _NOW - _DAY,
    ends: datetime.datetime = _NOW + 30 * _DAY,
    key: Key | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> Issued:
    """Issues a certificate. Without an `issuer` it is self-signed."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer or None
    issuer_name = signer.certificate.subject if signer else subject
    signing_key = signer.key if signer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=is_critical)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    if is_ca:
        builder = builder.add_extension(_USES_OF_AUTHORITY, critical=True)
    else:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names and not is_ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(text) for text in names]), False)
    for extension, is_critical_extension in extensions:
        builder = builder.add_extension(extension, is_critical_extension)
    return Issued(builder.sign(signing_key, hashes.SHA256()), key)


def authority(
    name: str = "vmsnapshot test authority", issuer: Issued | None = None, **options: Any
) -> Issued:
    """Issues the certificate of an authority."""
    return issue(name, issuer, is_ca=True, **options)


def pem(*issued: Issued) -> bytes:
    """Returns the certificates as PEM."""
    return b"".join(each.certificate.public_bytes(serialization.Encoding.PEM) for each in issued)


@contextlib.contextmanager
def s_server(directory: Path, server: Server) -> Iterator[int]:
    """Runs ``openssl s_server`` and yields its port."""
    certificate, key, chain = directory / "server.pem", directory / "server.key", directory / "chain.pem"
    certificate.write_bytes(pem(server.chain[0]))
    key.touch(mode=0o600)
    key.write_bytes(
        server.chain[0].key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", str(certificate), "-key", str(key)]
    if server.chain[1:]:
        chain.write_bytes(pem(*server.chain[1:]))
        command += ["-cert_chain", str(chain)]
    process = subprocess.Popen(
        [*command, "-www", *server.options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            found = re.match(r"ACCEPT \S*:(\d+)", line)
            if found is not None:
                break
        else:
            raise AssertionError(f"s_server has not started: {said}")
        yield int(found[1])
    finally:
        process.kill()
        process.wait(timeout=10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def bare_server(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """Runs a TCP server that hands every connection to `serve`, and closes it afterwards. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_over = threading.Event()

        def accept() -> None:
            while not is_over.is_set():
                with contextlib.suppress(OSError):
                    connection = listener.accept()[0]
                    with connection:
                        connection.settimeout(10)
                        serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            is_over.set()
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname(), timeout=1).close()
            thread.join(timeout=15)


def closes_in_handshake(connection: socket.socket) -> None:
    """Reads the client's first message and closes."""
    connection.recv(4096)


def resets_in_handshake(connection: socket.socket) -> None:
    """Reads the client's first message and resets the connection."""
    connection.recv(4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answers_in_plain_http(connection: socket.socket) -> None:
    """Answers as an HTTP server does to the bytes of TLS."""
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


_USES_OF_AUTHORITY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def faulty_servers() -> dict[str, Server]:
    """Returns a server for each fault of TLS that can be provoked, by the name of the fault."""
    root = authority()
    good = issue("localhost", root)
    constrained = authority(
        "constrained",
        root,
        extensions=[
            (
                x509.NameConstraints(
                    [x509.DNSName("allowed.example"), x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))],
                    None,
                ),
                True,
            )
        ],
    )
    inner = authority("inner", root)
    short = authority("short", root, path_length=0)
    no_authority = issue("no authority", root)
    rsa_root = authority(key=rsa_key())
    rsa_leaf = issue("localhost", rsa_root, key=rsa_key())
    weak_root = authority("weak", key=rsa_key(1024))
    past, future = _NOW - 10 * _DAY, _NOW + 10 * _DAY
    low = ("-cipher", "DEFAULT@SECLEVEL=0")
    return {
        "cipher": Server([rsa_leaf], rsa_root, ["-tls1_2", "-cipher", "AES256-GCM-SHA384"]),
        "version": Server([rsa_leaf], rsa_root, ["-tls1_1", *low]),
        "group": Server([good], root, ["-tls1_2", "-groups", "P-521"]),
        "expired": Server([issue("localhost", root, begins=past - _DAY, ends=past)], root),
        "expired-issuer": Server([issue("localhost", old := authority(begins=past - _DAY, ends=past))], old),
        "not-yet-valid": Server([issue("localhost", root, begins=future, ends=future + _DAY)], root),
        "other-name": Server([issue("localhost", root, names=["other.example"])], root),
        "no-name": Server([issue("localhost", root, names=[])], root),
        "self-signed": Server([issue("self-signed.example")]),
        "authority-as-server": Server(
            [
                itself := authority(
                    "localhost", extensions=[(x509.SubjectAlternativeName([_name("127.0.0.1")]), False)]
                )
            ],
            itself,
        ),
        "unknown-authority": Server([good], None),
        "incomplete-chain": Server([issue("localhost", inner)], root),
        "wrong-signature": Server([good], authority()),
        "weak-key-of-server": Server([issue("localhost", root, key=rsa_key(1024))], root, low),
        "weak-key-of-authority": Server([issue("localhost", weak_root)], weak_root, low),
        "name-constraints": Server([issue("localhost", constrained), constrained], root),
        "path-length": Server([issue("localhost", below := authority("below", short)), below, short], root),
        "issuer-is-no-authority": Server([issue("localhost", no_authority), no_authority], root),
        "other-purpose": Server([issue("localhost", root, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)], root),
        "critical-extension": Server(
            [
                issue(
                    "localhost",
                    root,
                    extensions=[
                        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)
                    ],
                )
            ],
            root,
        ),
        "client-certificate-1.2": Server([good], root, ["-tls1_2", "-Verify", "1"]),
        "client-certificate-1.3": Server([good], root, ["-tls1_3", "-Verify", "1"]),
    }
