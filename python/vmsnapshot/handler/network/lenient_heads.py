"""Passes over what is odd in the heads of HTTP answers.

Appliances between a machine and the service add headers, and not all of them are well formed. aiohttp refuses
an answer with such a header and has no option for it, so an appliance would cost the status and log blobs.
This module has the rules of ``lenient_http1`` in ``rust/engine/src/connect/connection.rs``, with which the
engine reads the answers to its snapshot requests.

It reaches into private names of aiohttp's parser in Python. The extension package brings along one version of
aiohttp without its compiled modules. With another aiohttp, an odd head may be refused.

Importing this module imports aiohttp, which is slow.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from typing import Any

import aiohttp
from aiohttp import http_parser
from aiohttp.client_proto import ResponseHandler

LINE_LIMIT_BYTES = 64 * 1024
"""The longest header line that a session should accept. Some appliances add long ones."""

# RFC 9110, 5.6.2.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# RFC 9110, 5.5: a value has none of these. A blank or tab may be in it.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BLANKS = b" \t"


def connector(tls: ssl.SSLContext) -> aiohttp.TCPConnector:
    """Returns a connector whose connections pass over what is odd in the head of an answer."""
    return _Connector(ssl=tls)


def repaired(lines: list[bytes]) -> list[bytes]:
    """Returns the header lines of an answer without those that cannot be read.

    Removes blanks between a name and its colon: RFC 9112, 5.1, asks a proxy to do so. Drops a line without a
    colon, with an invalid name or with a control character, together with its continuation lines. An empty
    line is the end of the head and stays.
    """
    kept: list[bytes] = []
    is_dropping = True
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            is_dropping = is_dropping or _FORBIDDEN.search(line.lstrip(_BLANKS)) is not None
            if not is_dropping:
                kept.append(line)
            continue
        name, colon, value = line.partition(b":")
        name = name.rstrip(_BLANKS)
        is_dropping = bool(line) and not (
            colon and _NAME.fullmatch(name) and not _FORBIDDEN.search(value.strip(_BLANKS))
        )
        if not is_dropping:
            kept.append(name + colon + value)
    return kept


class _Connector(aiohttp.TCPConnector):
    def __init__(self, *, ssl: ssl.SSLContext) -> None:
        super().__init__(ssl=ssl)
        self._factory = functools.partial(_new_connection, self._loop)


def _new_connection(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Connection(loop)


class _Connection(ResponseHandler):
    def set_response_params(self, **options: Any) -> None:
        super().set_response_params(**options)
        parser = self._parser
        if isinstance(parser, http_parser.HttpResponseParserPy):
            strict = parser._headers_parser
            parser._headers_parser = _HeadersParser(
                strict.max_line_size, strict.max_headers, strict.max_field_size, strict._lax
            )


class _HeadersParser(http_parser.HeadersParser):
    def parse_headers(self, lines: list[bytes]) -> Any:
        return super().parse_headers(repaired(lines))
