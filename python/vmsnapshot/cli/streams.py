"""Writes to standard output and standard error so that neither can make a run fail.

A reader that went away, a full disk behind a redirection or a closed descriptor must not hide what became of
a run, nor change its exit status into that of a traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Literal, TextIO


def open_missing_streams() -> None:
    """Puts ``/dev/null`` where standard input, output or error is closed.

    Otherwise the next file or socket to be opened gets the number 0, 1 or 2, and whoever writes to "standard
    error" writes into a blob's connection.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given out, so this one is `descriptor`.
            os.open(os.devnull, os.O_RDWR)


def is_terminal(name: Literal["stdout", "stderr"]) -> bool:
    """Tells whether the standard stream `name` is a terminal."""
    stream = getattr(sys, name)
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


def say(message: str) -> None:
    """Writes one line to standard error, after the program's name; does nothing where that cannot be."""
    _write_error_line(f"vmsnapshot: {printable(message)}\n")


def say_hint(hint: str) -> None:
    """Writes the line that follows an error: what the reader can do about it."""
    _write_error_line(f"hint: {printable(hint)}\n")


def write_out(text: str) -> str | None:
    """Writes `text` to standard output; says why that was not possible, and none when it was.

    A reader that has gone away (``vmsnapshot plan | head -1``) has read what it wanted: that is no failure.
    """
    stream = sys.stdout
    if stream is None:
        return None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except (OSError, ValueError) as error:
        _discard(stream)
        return error.strerror.lower() if isinstance(error, OSError) and error.strerror else "it is closed"
    return None


def printable(text: str) -> str:
    """Makes `text` safe to show: control characters and undecodable bytes become ``\\xNN``.

    A mount point may hold any byte but NUL; a terminal must not be driven by one.
    """
    return "".join(_printable_character(character) for character in text)


def _printable_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # How Python keeps a byte that is not UTF-8 (`surrogateescape`).
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _write_error_line(line: str) -> None:
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(line)
        stream.flush()
    except (OSError, ValueError):
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Lets what is still buffered in `stream`, and all that follows, go nowhere.

    It would be written once more when the interpreter ends; that fails again, and puts the interpreter's own
    exit status, 120, in the place of ours.
    """
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, stream.fileno())
        finally:
            os.close(descriptor)
