"""Writes warnings and errors as events for the agent, which forwards them as telemetry.

The folder belongs to the agent, and is never created here. A failure to write an event does not affect a run.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import Line
from vmsnapshot.handler.secret import redacted

NO_OPERATION = "00000000-0000-0000-0000-000000000000"
"""The operation id of an event whose task id is not known."""

MESSAGE_LIMIT_CHARACTERS = 3000
"""The agent cuts a message at 3072 characters (azurelinuxagent/ga/collect_telemetry_events.py)."""

PART_LIMIT_CHARACTERS = 2900
"""A longer line is written in parts. This limit leaves room for the time and the number of the part."""

EVENTS_LIMIT = 300
"""The agent accepts no more events of one handler in five minutes: 300 or 360, depending on its version. With
3000 characters of four bytes each, they are also below the 4000000 bytes at which it ignores a whole file."""

FOLDER_LIMIT_BYTES = 39_981_250
"""The agent does not collect a folder of this size, so nothing more is written (extension's contract)."""

_KEPT_SECONDS = 24 * 3600

# The agent may empty the folder at any moment. The pause is short, because a command waits for it.
_TRIES = 3
_PAUSE_SECONDS = 0.1


def write_events(
    folder: Path | None,
    lines: Sequence[Line],
    *,
    version: str,
    operation_id: str | None,
    disabled: bool = False,
) -> bool:
    """Writes the lines as one file of events. Returns whether it was written.

    `version` is ``<name>-<version>``, and `operation_id` is the task id of the job or `None`. Nothing is
    written if there are no lines, if `disabled` is true, or if `folder` is `None`, missing or full.

    Blocking: 0.2 s at most, plus the time of the disk. Not allowed in the window.
    """
    if disabled or folder is None or not lines or not folder.is_dir():
        return False
    events = [_event(message, version, operation_id or NO_OPERATION) for message in _messages(lines)]
    # As UTF-8 without escapes, because six bytes per character would make the file too large.
    document = json.dumps(events[:EVENTS_LIMIT], ensure_ascii=False)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        with contextlib.suppress(OSError):
            if _size_bytes(folder) + len(document.encode()) > FOLDER_LIMIT_BYTES:
                return False
            _put(folder, document)
            return True
    return False


def delete_old_events(folder: Path | None) -> None:
    """Deletes files that are older than a day. The agent has not collected them, and will not."""
    if folder is None:
        return
    for directory in (folder, folder / "Temp"):
        with contextlib.suppress(OSError):
            for file in _files(directory):
                if time.time() - file.stat(follow_symlinks=False).st_mtime > _KEPT_SECONDS:
                    Path(file).unlink(missing_ok=True)
    _remove_if_empty(folder / "Temp")


def _put(folder: Path, document: str) -> None:
    # The agent reads and deletes every file in the folder itself, even if it is incomplete.
    temporary_folder = folder / "Temp"
    temporary_folder.mkdir(mode=0o700, exist_ok=True)
    number = time.time_ns()
    while (folder / f"{number}.json").exists():
        number += 1
    temporary = temporary_folder / f"{number}-{os.getpid()}"
    try:
        write_atomically(temporary, document)
        temporary.replace(folder / f"{number}.json")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _remove_if_empty(temporary_folder)


def _event(message: str, version: str, operation_id: str) -> dict[str, str]:
    """Returns one event. The agent drops an event if a value is not a string."""
    return {
        "Version": version,
        "Timestamp": _iso(datetime.datetime.now(datetime.timezone.utc)),
        "TaskName": "Enable",
        # Always, as in the predecessor. The agent's own word is "Informational", but it does not check, and
        # the readers of these events know this one.
        "EventLevel": "Info",
        "Message": message,
        "EventPid": str(os.getpid()),
        "EventTid": str(threading.get_native_id()),
        "OperationId": operation_id,
    }


def _messages(lines: Sequence[Line]) -> Iterator[str]:
    """Puts as many lines into each message as fit."""
    message = ""
    for part in _parts(lines):
        if message and len(message) + len(part) > MESSAGE_LIMIT_CHARACTERS:
            yield message
            message = ""
        message += part
    if message:
        yield message


def _parts(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        text = f"{_iso(line.when)}\t[{line.level.value}]:\t{redacted(line.text)}"
        if len(text) <= PART_LIMIT_CHARACTERS:
            yield f"{text} \n"
            continue
        starts = range(0, len(text), PART_LIMIT_CHARACTERS)
        for number, start in enumerate(starts, start=1):
            part = text[start : start + PART_LIMIT_CHARACTERS]
            yield f"{_iso(line.when)} [{number}/{len(starts)}] {part} \n"


def _iso(when: datetime.datetime) -> str:
    # As in the contract: always with microseconds, and without the zone.
    return when.replace(tzinfo=None).isoformat(timespec="microseconds")


def _files(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return [entry for entry in entries if entry.is_file(follow_symlinks=False)]


def _size_bytes(folder: Path) -> int:
    return sum(file.stat(follow_symlinks=False).st_size for file in _files(folder))


def _remove_if_empty(directory: Path) -> None:
    # It is not empty while another command of this handler writes into it.
    with contextlib.suppress(OSError):
        directory.rmdir()
