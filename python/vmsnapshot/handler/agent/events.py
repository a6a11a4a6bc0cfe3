"""Warnings and errors for the agent, which sends them on as telemetry.

The folder is the agent's: it is used where there is one, and never made. That an event could not be written
has no consequence for a run.
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
"""The operation of an event from before the job's task id is known."""

MESSAGE_LIMIT_CHARACTERS = 3000
"""The agent cuts a message at 3072 characters (azurelinuxagent/ga/collect_telemetry_events.py)."""

PART_LIMIT_CHARACTERS = 2900
"""A longer line is written in parts; this leaves room for the time and the number of the part."""

EVENTS_LIMIT = 300
"""The agent takes no more from one handler in five minutes, 300 or 360 by its version. At 3000 characters of
four bytes they are also less than the 4000000 bytes at which it leaves a whole file unread."""

FOLDER_LIMIT_BYTES = 39_981_250
"""A folder that holds this much is not collected, and nothing more is written (the extension's contract)."""

_KEPT_SECONDS = 24 * 3600

# The agent may empty the folder between any two of our steps. Short, because this is the end of a command.
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
    """Writes the lines as one file of events; returns whether it is there.

    `version` is ``<name>-<version>``, `operation_id` the job's task id or none. Nothing is written when there
    are no lines, `disabled` is true, or `folder` is none, missing or full.

    Blocking: 0.2 s at most, besides what the disk takes. Not in the window.
    """
    if disabled or folder is None or not lines or not folder.is_dir():
        return False
    events = [_event(message, version, operation_id or NO_OPERATION) for message in _messages(lines)]
    # As UTF-8 and not escaped: six bytes a character would make files that are too large.
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
    """Deletes what has been in the folder for more than a day, because nobody collects it any more."""
    if folder is None:
        return
    for directory in (folder, folder / "Temp"):
        with contextlib.suppress(OSError):
            for file in _files(directory):
                if time.time() - file.stat(follow_symlinks=False).st_mtime > _KEPT_SECONDS:
                    Path(file).unlink(missing_ok=True)
    _remove_if_empty(folder / "Temp")


def _put(folder: Path, document: str) -> None:
    # The agent reads and deletes whatever lies in the folder itself, half-written or not.
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
    """One event; a value that is not a text would lose it, by the agent's rules."""
    return {
        "Version": version,
        "Timestamp": _iso(datetime.datetime.now(datetime.timezone.utc)),
        "TaskName": "Enable",
        # Whatever the lines are, as the predecessor does. The agent's own word is "Informational"; it does
        # not check, and whoever reads these events knows them by this one.
        "EventLevel": "Info",
        "Message": message,
        "EventPid": str(os.getpid()),
        "EventTid": str(threading.get_native_id()),
        "OperationId": operation_id,
    }


def _messages(lines: Sequence[Line]) -> Iterator[str]:
    """Puts as many lines into each message as it holds."""
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
    # With microseconds even if they are zero, and without the zone, as the contract has it.
    return when.replace(tzinfo=None).isoformat(timespec="microseconds")


def _files(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return [entry for entry in entries if entry.is_file(follow_symlinks=False)]


def _size_bytes(folder: Path) -> int:
    return sum(file.stat(follow_symlinks=False).st_size for file in _files(folder))


def _remove_if_empty(directory: Path) -> None:
    # It is not, while another command of this handler is writing there.
    with contextlib.suppress(OSError):
        directory.rmdir()
