"""Says in words why a connection of aiohttp failed: which stage, and what the other side answered.

The texts of aiohttp and OpenSSL are for programmers: ``Cannot connect to host x:443 ssl:<ssl.SSLContext
object at 0x7f>``, ``[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] (_ssl.c:1006)``. None of them leaves this module.
``rust/engine/src/connect/explain.rs`` has the same words for the connections of the engine.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

from vmsnapshot.handler.secret import redacted

if TYPE_CHECKING:
    import aiohttp

_CLOCK = "check this machine's clock, or renew the server's certificate"
_ISSUER = "add the issuer's certificate to the system's trust store"
_CIPHERS = "allow TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or CHACHA20-POLY1305, on the server"
_VERSIONS = "allow TLS 1.2 or 1.3 on the server or the device in between"
_CERTIFICATE = "replace the server's certificate"

# The errors of OpenSSL's verification (x509_vfy.h) that a server's certificate can cause. Their numbers do
# not change between versions.
_CERTIFICATE_CAUSES = {
    2: ("the issuer of its certificate is unknown", _ISSUER),
    7: ("the signature of its certificate does not match the trusted issuer of that name", _ISSUER),
    9: ("its certificate, or one of its issuers, is not valid yet", _CLOCK),
    10: ("its certificate, or one of its issuers, has expired", _CLOCK),
    18: ("the issuer of its certificate is unknown: the certificate is self-signed", _ISSUER),
    19: ("the issuer of its certificate is unknown: the chain ends in an unknown authority", _ISSUER),
    20: ("the issuer of its certificate is unknown", _ISSUER),
    21: ("the issuer of its certificate is unknown", _ISSUER),
    24: ("its certificate was issued by a certificate that is not an authority's", _CERTIFICATE),
    25: ("its chain is longer than an issuer allows (path length)", _CERTIFICATE),
    26: ("its certificate does not allow to authenticate a server (extended key usage)", _CERTIFICATE),
    34: ("its certificate has a critical extension that is not supported", _CERTIFICATE),
    47: ("its issuer may not issue certificates for this name (name constraints)", _CERTIFICATE),
    48: ("its issuer may not issue certificates for this name (name constraints)", _CERTIFICATE),
    62: ("its certificate is for another name", "use the name that the certificate is for"),
    64: ("its certificate is for another address", "use the name that the certificate is for"),
    66: ("the key of its certificate is too weak", _CERTIFICATE),
    67: ("the key of an issuer of its certificate is too weak", _CERTIFICATE),
    68: ("an issuer of its certificate signs with a weak algorithm, such as SHA-1", _CERTIFICATE),
    79: ("its certificate was issued by a certificate that is not an authority's", _CERTIFICATE),
}

# Parts of OpenSSL's reasons (sslerr.h), in the order in which they are looked for.
_TLS_CAUSES = (
    (
        ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"),
        ("the server's answer is not TLS", "the server may speak plain HTTP on this port"),
    ),
    (
        ("ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW"),
        ("the server offers neither TLS 1.2 nor TLS 1.3", _VERSIONS),
    ),
    (
        ("ALERT_CERTIFICATE_REQUIRED", "ALERT_NO_CERTIFICATE", "ALERT_BAD_CERTIFICATE"),
        ("the server demands a client certificate", "let the server not ask for one"),
    ),
    (
        (
            "ALERT_HANDSHAKE_FAILURE",
            "INSUFFICIENT_SECURITY",
            "NO_SHARED_CIPHER",
            "NO_CIPHERS",
            "WRONG_CIPHER",
        ),
        (
            "the server supports no cipher suite, key exchange or signature that this machine supports, or "
            "demands a client certificate",
            _CIPHERS,
        ),
    ),
    (
        ("DH_KEY_TOO_SMALL", "EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL"),
        ("a key of the server is too weak", _CERTIFICATE),
    ),
    (
        ("UNRECOGNIZED_NAME",),
        ("the server has no certificate for this name", "check the host name"),
    ),
    (("UNEXPECTED_EOF", "UNEXPECTED EOF"), ("the server closed the connection", None)),
)


def is_of_proxy(error: BaseException) -> bool:
    """Whether a request through a proxy failed for a reason that may be the proxy's.

    Every reason may, also a connection that was closed or an answer that never came, with two exceptions. An
    HTTP answer is the service's, except 407. A refusal by TLS is a matter of trust, and not of the way.
    """
    import asyncio

    import aiohttp

    error = _origin(error)
    status = getattr(error, "status_code", None)
    if status is not None:
        # The answer of a proxy to a request in plain HTTP.
        return bool(status == 407)
    return (
        isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, OSError))
        and not isinstance(error, aiohttp.InvalidURL)
        and not _is_of_certificate(error)
        and not _is_of_tls(error)
    )


def cause_of(error: BaseException, *, proxy: str | None = None) -> str:
    """Returns the cause of a failed request, as a part of a sentence and without a secret.

    `proxy` is the proxy of the request.
    """
    import asyncio

    import aiohttp

    error = _origin(error)
    through = f" through the proxy {redacted(proxy)}" if proxy else ""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        refusal = f"{error.status} {_printable(error.message)}".rstrip()
        return f"the proxy {redacted(proxy)} answered {refusal} to CONNECT"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"could not connect to the proxy {redacted(proxy)}: {_system_words(error.os_error)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        to = f"the proxy {redacted(proxy)}" if proxy else "the server"
        return f"the connection to {to} took too long (hint: a firewall in between may drop the packets)"
    if _is_of_certificate(error):
        return f"could not set up TLS{through}: {_certificate_cause(_certificate_error(error))}"
    os_error = getattr(error, "os_error", error)
    if _is_of_tls(error):
        return f"could not set up TLS{through}: {_tls_cause(os_error)}"
    if isinstance(os_error, ConnectionError) and not os_error.errno and error is not os_error:
        return f"could not set up TLS{through}: the server closed the connection during the handshake"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"could not {_step(error)}: {_system_words(error.os_error)}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return f"the server closed the connection without an answer{through}"
    if isinstance(error, asyncio.TimeoutError):
        return f"the server did not answer in time{through}"
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ClientResponseError)):
        return f"the server's answer is not HTTP, or ended too early{through}"
    if isinstance(error, aiohttp.InvalidURL):
        return "its URI cannot be used"
    if isinstance(error, OSError):
        return f"the connection failed{through}: {_system_words(error)}"
    return f"{redacted(error)[:200]} ({type(error).__name__})".strip()


def _origin(error: BaseException) -> BaseException:
    """Returns the error that the Azure SDK has wrapped, if any."""
    return getattr(error, "inner_exception", None) or error


def _certificate_error(error: BaseException) -> BaseException:
    return getattr(error, "certificate_error", error)


def _is_of_certificate(error: BaseException) -> bool:
    return isinstance(_certificate_error(error), ssl.SSLCertVerificationError)


def _is_of_tls(error: BaseException) -> bool:
    # aiohttp makes errors of its own that have only the text: "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] ...".
    os_error = getattr(error, "os_error", error)
    return isinstance(os_error, ssl.SSLError) or "[SSL: " in str(os_error)


def _certificate_cause(error: BaseException) -> str:
    cause, hint = _CERTIFICATE_CAUSES.get(
        # The number is missing if Python itself refused the certificate.
        getattr(error, "verify_code", 0),
        (
            f"its certificate is refused: {_printable(getattr(error, 'verify_message', '')).lower()}",
            _CERTIFICATE,
        ),
    )
    return f"{cause.rstrip(': ')} (hint: {hint})"


def _tls_cause(error: BaseException) -> str:
    found = re.search(r"\[SSL: ([A-Z0-9_]+)\]", str(error))
    reason = str(getattr(error, "reason", None) or (found[1] if found else "")).upper()
    reason = reason or str(getattr(error, "strerror", None) or "").upper()
    for words, (cause, hint) in _TLS_CAUSES:
        if any(word in reason for word in words):
            return f"{cause} (hint: {hint})" if hint else cause
    alert = re.search(r"ALERT_([A-Z_]+)", reason)
    if alert is not None:
        return f"the server refused TLS (alert {alert[1].lower()})"
    return f"TLS failed: {_printable(reason.replace('_', ' ').lower()) or 'no reason is known'}"


def _step(error: aiohttp.ClientConnectorError) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"resolve `{error.host}`"
    return f"connect to {error.host}:{error.port}"


def _system_words(error: OSError) -> str:
    words = error.strerror or ""
    # aiohttp and asyncio put several errors into one text, for example one per address.
    found = re.findall(r"\[Errno -?\d+\] ([^\[\]()']+)", words)
    words = found[-1] if found else words
    words = re.sub(r"^Connect call failed.*$", "", words)
    if not words and error.errno:
        import os

        words = os.strerror(error.errno)
    words = _printable(words)
    return words[:1].lower() + words[1:] if words[1:2].islower() else words or "no reason is known"


def _printable(text: str) -> str:
    # Cut last, so that no part of a signature is left that is too short to be known.
    return redacted("".join(letter for letter in str(text) if " " <= letter <= "~"))[:100].strip()
