"""Reads the list of SAS URIs that ``--blobs-from`` names, and checks what can be checked of one URI's text.

A SAS URI is a secret. No error of this file holds anything that was read: it names the line or the entry by
its number. What a URI means is the engine's business; only text that can be no URI at all is refused here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

from vmsnapshot.cli.streams import say
from vmsnapshot.errors import ArgumentsError

# A SAS URI has a few hundred bytes and a VM at most some dozens of disks; the limit keeps a wrong file name
# (a disk image, /dev/zero) from filling the memory.
LIST_LIMIT_BYTES = 4 * 1024 * 1024

FORMS_HINT = 'give one SAS URI a line, or a JSON list, or {"blobSASUri": [...]}; `#` begins a comment line'


def read_blob_list(path: str) -> list[str]:
    """Reads the SAS URIs in the file `path`, or on standard input when `path` is ``-``.

    Raises:
        ArgumentsError: the file cannot be read, is in none of the known forms, or names no blob.

    Blocking: as long as standard input, or a FIFO, keeps it waiting.
    """
    subject = "standard input" if path == "-" else f"`{path}`"
    try:
        if path == "-":
            content = _read_limited(_standard_input())
        else:
            with Path(path).open("rb") as file:
                content = _read_limited(file)
    except (OSError, ValueError) as error:
        # A ValueError is a path with a NUL byte, or a standard input that is closed.
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
    """Takes the SAS URIs out of `content`; `subject` is what errors call it.

    Raises:
        ArgumentsError: `content` is in none of the known forms, or names no blob.
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
    """Says why `uri` can be no URI, without any of its text; none when it may be one."""
    if not uri:
        return "is empty"
    if any(character.isspace() for character in uri):
        return "has white space in it"
    if not all("!" <= character <= "~" for character in uri):
        return "has a character that may not stand in a URI"
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
        # Nested too deep, or a number with more digits than Python converts.
        raise _malformed(subject, "it is not a JSON list of texts") from None
    if isinstance(document, dict):
        document = document.get("blobSASUri")
    if not isinstance(document, list):
        raise _malformed(subject, "its JSON has no list `blobSASUri`")
    uris = []
    for number, entry in enumerate(document, start=1):
        if not isinstance(entry, str):
            raise _malformed(subject, f"entry {number} is not a text")
        uri = entry.strip()
        defect = uri_defect(uri)
        if defect is not None:
            raise _malformed(subject, f"entry {number} {defect}")
        uris.append(uri)
    return uris


def _malformed(subject: str, defect: str) -> ArgumentsError:
    return ArgumentsError(
        f"could not understand the list of blobs from {subject}: {defect}",
        code="blob-list-malformed",
        hint=FORMS_HINT,
    )


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    if sys.stdin.isatty():
        say("reading SAS URIs from the terminal, end with Ctrl-D")
    return sys.stdin.buffer


def _read_limited(file: BinaryIO) -> bytes:
    return file.read(LIST_LIMIT_BYTES + 1)
