"""Texts that must not be printed. Only `expose` returns them."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any, NoReturn

from vmsnapshot import Signatures, uri_without_query
from vmsnapshot.errors import VmsnapshotError

# A query that contains a signature, up to a character that can end a URI in running text. It begins at the
# last `?`, so that a text of many `?` is scanned only once.
_SAS_QUERY = re.compile(r"\?[^\s\"'<>\\?]*?\bsig=[^\s\"'<>\\]*", re.IGNORECASE)
# What may be a URI in running text.
_WORD = re.compile(r"[^\s\"'<>]+")

# The signatures of all SAS URIs of this process, and what was given to `keep_out`. Whoever gets them in a
# request may repeat them.
_SIGNATURES = Signatures()

# Scheme, host, port and path of a URI without its query. The path begins with a slash, or is empty.
_BLOB = re.compile(r"(https?)://([^/]*?)(?::([0-9]{1,9}))?(/.*)?", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Secret:
    """A text that only `expose` returns. Formatting, pickling or printing it does not reveal it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def expose(self) -> str:
        """Returns the text, for the code that sends it."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


class SasUri(Secret):
    """The URI of a blob. Its query, the signature, is secret. `str` returns the URI without the query.

    `redacted` removes its signature from now on.
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text.strip())
        _SIGNATURES.add(text)

    @property
    def without_query(self) -> str:
        """The URI in a form that may be printed and reported."""
        return uri_without_query(self._text)

    @property
    def has_lost_query(self) -> bool:
        """Whether the signature is in the path, because the `?` is missing or encoded.

        A request would not be authorized, and would show the signature as a blob's name. The engine refuses
        such a URI too.
        """
        return "sig=" in urllib.parse.unquote(self._text.partition("?")[0]).lower()

    @property
    def blob(self) -> Secret:
        """Which blob it names: equal for two URIs if the engine takes them for one.

        Host, port and path count. Scheme and SAS do not, and the scheme's default port counts as no port.
        """
        text = self._text.partition("?")[0]
        match = _BLOB.fullmatch(text)
        if match is None:
            return Secret(text)
        scheme, host, digits, path = match.groups("")
        is_default = not digits or int(digits) == _DEFAULT_PORTS[scheme.lower()]
        return Secret(f"{host.lower()}:{'' if is_default else int(digits)}{path}")

    def __str__(self) -> str:
        return self.without_query


def keep_out(secret: str) -> None:
    """Has `redacted` remove `secret` from now on: the service, a proxy or the host may repeat it."""
    _SIGNATURES.add_secret(secret)


def redacted(text: Any) -> str:
    """Removes signatures and passwords from a text that may contain them, such as an answer or an error.

    The signatures are those behind `sig=`, and those of every `SasUri` of this process. What was given to
    `keep_out` is removed as well.
    """
    text = _SIGNATURES.removed_from(_SAS_QUERY.sub("?...", str(text)))
    return _WORD.sub(_without_credentials, text) if "@" in text else text


def _without_credentials(word: re.Match[str]) -> str:
    """Removes what is between the first `//` and the last `@`: a name and a password in front of a host."""
    before, slashes, rest = word[0].partition("//")
    _, at, host = rest.rpartition("@")
    return f"{before}{slashes}...{at}{host}" if at else word[0]


def explained(error: VmsnapshotError) -> str:
    """Returns what failed and why, and what the reader can do, in one line without signatures."""
    return one_line(f"{error}; {error.hint}" if error.hint else str(error))


def one_line(text: str) -> str:
    """Returns a text that may contain a URI in one line, without signatures."""
    return " ".join(redacted(text).split())


def described(error: BaseException) -> str:
    """Describes an unexpected error by its class and place. Its text may contain a secret."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        name = f"{name} ({error.strerror.lower()})"
    if place is None:
        return name
    return f"{name} in {place.tb_frame.f_code.co_filename.rpartition('/')[2]}, line {place.tb_lineno}"
