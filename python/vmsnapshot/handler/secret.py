"""Texts that must not be printed: every rendering but `expose` hides them."""

from __future__ import annotations

import re
from typing import Any, NoReturn

# A query that holds a signature, up to what may end a URI in running text. It begins at the last `?`, so that
# a text of nothing but those is looked at once.
_SAS_QUERY = re.compile(r"\?[^\s\"'<>\\?]*?\bsig=[^\s\"'<>\\]*", re.IGNORECASE)
# A name and a password before a host.
_CREDENTIALS = re.compile(r"//[^\s\"'<>]*@")
_SIGNATURE = re.compile(r"(sig(?:=|%3d|%253d))[^&\s\"'<>\\]+", re.IGNORECASE)


class Secret:
    """A text that only `expose` shows. It cannot be formatted, pickled or printed by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def expose(self) -> str:
        """Returns the text, for the one who sends it."""
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
        raise TypeError("a secret is not pickled")


class SasUri(Secret):
    """A blob's URI whose query, the signature, is secret; `str` gives it without the query."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(text.strip())

    @property
    def without_query(self) -> str:
        """The URI as it may be printed and reported."""
        # A malformed one may have its signature in the path.
        return _SIGNATURE.sub(r"\1...", self._text.partition("?")[0])

    def __str__(self) -> str:
        return self.without_query


def redacted(text: Any) -> str:
    """Takes signatures and passwords out of a text that may hold a URI: an answer, an exception's message."""
    return _CREDENTIALS.sub("//...@", _SIGNATURE.sub(r"\1...", _SAS_QUERY.sub("?...", str(text))))


def described(error: BaseException) -> str:
    """Names an unexpected error by its class and place: its text may hold what must not be written."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        name = f"{name} ({error.strerror.lower()})"
    if place is None:
        return name
    return f"{name} in {place.tb_frame.f_code.co_filename.rpartition('/')[2]}, line {place.tb_lineno}"
