"""Reads the list of SAS URIs that ``--blobs-from`` names, and checks the text of each URI.

A SAS URI is a secret. Therefore no error of this module contains text that was read. It contains the number
of the line or the entry instead. This module refuses only text that cannot be a URI. The engine checks the
rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

from vmsnapshot.cli.streams import say
from vmsnapshot.errors import ArgumentsError

# A SAS URI has a few hundred bytes, and a VM has a few dozen disks at most. The limit protects the memory if
# the file name is wrong (a disk image, /dev/zero).
LIST_LIMIT_BYTES = 4 * 1024 * 1024

FORMS_HINT = 'write one SAS URI per line, or a JSON list, or {"blobSASUri": [...]}; `#` begins a comment line'


def read_blob_list(path: str) -> list[str]:
    """Reads the SAS URIs from the file `path`, or from standard input if `path` is ``-``.

    Raises:
        ArgumentsError: the file cannot be read, has none of the known forms, or names no blob.

    Blocking: until standard input, or a FIFO, ends.
    """
    subject = "standard input" if path == "-" else f"`{path}`"
    try:
        if path == "-":
            content = _read_limited(_standard_input())
        else:
            with Path(path).open("rb") as file:
                content = _read_limited(file)
    except (OSError, ValueError) as error:
        # A `ValueError` means a path with a NUL byte, or a closed standard input.
        cause = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be opened"
        raise ArgumentsError(
            f"could not read the list of blobs from {subject}: {cause.lower()}",
            code="blob-list-unreadable",
        ) from None
    if len(content) > LIST_LIMIT_BYTES:
        raise ArgumentsError(
            f"could not read the list of blobs from {subject}: it is longer than {LIST_LIMIT_BYTES} bytes",
            code="blob-list-too-long",
            hint=FORMS_HINT,
        )
    return parse_blob_list(content, subject)


def parse_blob_list(content: bytes, subject: str) -> list[str]:
    """Returns the SAS URIs in `content`. Errors call it `subject`.

    Raises:
        ArgumentsError: `content` has none of the known forms, or names no blob.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line_number = content.count(b"\n", 0, error.start) + 1
        raise _malformed(subject, f"line {line_number} is not UTF-8 text") from None
    uris = _from_json(text, subject) if text.lstrip()[:1] in ("[", "{") else _from_lines(text, subject)
    if not uris:
        raise ArgumentsError(
            f"the list of blobs on {subject} is empty"
            if subject == "standard input"
            else f"the list of blobs in {subject} is empty",
            code="blob-list-empty",
            hint=FORMS_HINT,
        )
    return uris


def uri_defect(uri: str) -> str | None:
    """Returns why `uri` cannot be a URI, without repeating it, or `None` if it can be one."""
    if not uri:
        return "is empty"
    if any(character.isspace() for character in uri):
        return "contains white space"
    if not all("!" <= character <= "~" for character in uri):
        return "contains a character that is not allowed in a URI"
    return None


def _from_lines(text: str, subject: str) -> list[str]:
    uris = []
    for number, line in enumerate(text.split("\n"), start=1):
        uri = line.strip()
        if not uri or uri.startswith("#"):
            continue
        defect = uri_defect(uri)
        if defect is not None:
            raise _malformed(subject, f"line {number} {defect}")
        uris.append(uri)
    return uris


def _from_json(text: str, subject: str) -> list[str]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(subject, f"line {error.lineno} is not JSON") from None
    except (RecursionError, ValueError):
        # Nested too deeply, or a number with more digits than Python converts.
        raise _malformed(subject, "it is not a JSON list of strings") from None
    if isinstance(document, dict):
        document = document.get("blobSASUri")
    if not isinstance(document, list):
        raise _malformed(subject, "its JSON has no list `blobSASUri`")
    uris = []
    for number, entry in enumerate(document, start=1):
        if not isinstance(entry, str):
            raise _malformed(subject, f"entry {number} is not a string")
        uri = entry.strip()
        defect = uri_defect(uri)
        if defect is not None:
            raise _malformed(subject, f"entry {number} {defect}")
        uris.append(uri)
    return uris


def _malformed(subject: str, defect: str) -> ArgumentsError:
    return ArgumentsError(
        f"could not parse the list of blobs from {subject}: {defect}",
        code="blob-list-malformed",
        hint=FORMS_HINT,
    )


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    if sys.stdin.isatty():
        say("reading SAS URIs from the terminal; end the list with Ctrl-D")
    return sys.stdin.buffer


def _read_limited(file: BinaryIO) -> bytes:
    return file.read(LIST_LIMIT_BYTES + 1)
