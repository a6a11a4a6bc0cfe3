"""Writes to standard output and standard error so that neither can make a run fail.

The reader may have gone away, the disk behind a redirection may be full, and a descriptor may be closed. None
of this may hide the result of a run, or replace its exit status by that of a traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Literal, TextIO


def open_missing_streams() -> None:
    """Opens ``/dev/null`` for each of standard input, output and error that is closed.

    Otherwise the next file or socket gets the number 0, 1 or 2, and a message to "standard error" is written
    into the connection to a blob.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The kernel assigns the lowest free number, which is `descriptor`.
            os.open(os.devnull, os.O_RDWR)


def is_terminal(name: Literal["stdout", "stderr"]) -> bool:
    """Returns whether the standard stream `name` is a terminal."""
    stream = getattr(sys, name)
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


def say(message: str) -> None:
    """Writes one line to standard error, after the name of the program. Does nothing if that fails."""
    _write_error_line(f"vmsnapshot: {printable(message)}\n")


def say_hint(hint: str) -> None:
    """Writes the line after an error that shows what the reader can do."""
    _write_error_line(f"hint: {printable(hint)}\n")


def say_raw(text: str) -> None:
    """Writes text of another program to standard error. Does nothing if that fails."""
    _write_error_line(text)


def write_out(text: str) -> str | None:
    """Writes `text` to standard output. Returns why that failed, or `None`.

    A reader that has gone away (``vmsnapshot plan | head -1``) has read what it wanted. This is not a
    failure.
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
    """Makes `text` safe to print: control characters and undecodable bytes become ``\\xNN``.

    A mount point may contain any byte except NUL, and it must not control the terminal.
    """
    return "".join(_printable_character(character) for character in text)


def _printable_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # Python's form of a byte that is not UTF-8 (`surrogateescape`).
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
    """Redirects `stream` to ``/dev/null``, with everything that is still buffered.

    Otherwise the interpreter writes the buffer again when it ends. That fails again, and the exit status
    becomes the interpreter's own, 120.
    """
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, stream.fileno())
        finally:
            os.close(descriptor)
