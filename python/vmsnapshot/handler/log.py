"""Logs to the log folder, to the log blob, and to the agent's events.

Logging never fails a run, and it never touches a disk that may be frozen (`Log.suspend`). It reads no
configuration: the constructor of `Log` decides what is logged where. Unlike the predecessor, nothing goes to
the console, because a serial console can block its writer for seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import fcntl
import os
import re
from collections import deque
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from vmsnapshot.handler.files import open_existing, open_or_create
from vmsnapshot.handler.secret import redacted

EXTENSION_LOG = "extension.log"
HOST_BASED_EXTENSION_LOG = "host_based_extension.log"
SHELL_LOG = "shell.log"

ROTATE_AT_BYTES = 5 * 1024 * 1024
"""A log file of this size is renamed to ``.1`` before the next line. The agent does not rotate these logs."""

ROTATED_FILES = 3

SHELL_TAIL_LINES = 10
"""How many lines of the shell log the log blob contains, by the extension's contract."""

LINE_LIMIT_CHARACTERS = 8192

# Limits of what stays in memory. The first lines of a run show its task, and the last ones its result.
_BLOB_HEAD_BYTES = 512 * 1024
_BLOB_TAIL_BYTES = 1536 * 1024
_EVENTS_HEAD_BYTES = 64 * 1024
_EVENTS_TAIL_BYTES = 192 * 1024
_UNWRITTEN_BYTES = 2 * 1024 * 1024

# What a line of the log blob has in addition to its text: the time, the level and the blanks.
_LINE_OVERHEAD_BYTES = 40

# Characters that end a line for some reader, or that a terminal may obey.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Level(enum.Enum):
    """How serious a line is. The values are the words of the log blob and of the events."""

    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"


class Line(NamedTuple):
    """One line. Its text has no signature and no control character, and can be encoded."""

    when: datetime.datetime
    """UTC."""
    level: Level
    text: str


class Log:
    """The log of one process. Several threads may use it, but a signal handler must not.

    If the log file cannot be written, lines wait in memory until a later line can be written. If there are
    too many, the file loses the oldest ones. The blob does not.
    """

    def __init__(
        self,
        folder: Path | None,
        writer: str,
        *,
        file_name: str = EXTENSION_LOG,
        write_log: bool = True,
    ) -> None:
        """Creates a log that writes to `file_name` in `folder`. `writer` is ``<name>-<version>``.

        Without a folder, or if `write_log` is false, lines go to the log blob and to the events only.
        """
        self._folder = folder
        self._file = folder / file_name if folder is not None and write_log else None
        self._writer = writer
        self._lines = _BoundedLines(_BLOB_HEAD_BYTES, _BLOB_TAIL_BYTES)
        self._for_events = _BoundedLines(_EVENTS_HEAD_BYTES, _EVENTS_TAIL_BYTES)
        self._unwritten = bytearray()
        self._has_warned = False
        self._suspended = False
        self._discarding = False
        self._discarded = 0
        # Reentrant, so that a signal handler that logs in spite of the rule does not deadlock.
        self._lock = RLock()

    def info(self, text: str) -> None:
        """Adds a line about the progress."""
        self._add(Level.INFO, text)

    def warning(self, text: str) -> None:
        """Adds a line that an operator should look at, although the run goes on as asked."""
        self._add(Level.WARNING, text)

    def error(self, text: str) -> None:
        """Adds a line about a failure and its cause."""
        self._add(Level.ERROR, text)

    def suspend(self, *, discard: bool = False) -> None:
        """Writes nothing to disk until `resume`, because filesystems may be frozen.

        `discard` omits the lines from file and blob, and logs only their number. Warnings and errors still
        become events. Call this before the freeze: it waits for a write that is in progress.
        """
        with self._lock:
            self._suspended = True
            self._discarding = discard

    def resume(self) -> None:
        """Writes the lines that were added meanwhile, and ends the suspension. Does nothing without one."""
        with self._lock:
            if not self._suspended:
                return
            self._discarding = False
            self._suspended = False
            discarded, self._discarded = self._discarded, 0
            if discarded:
                self.info(f"{discarded} lines from the time of the freeze were discarded (LoggingOff)")
            self._write()

    @property
    def is_suspended(self) -> bool:
        """Whether nothing is written to disk."""
        return self._suspended

    def blob_text(self) -> bytes:
        """Returns the text of the log blob as UTF-8: the lines so far, then the end of the shell log.

        The text has about 2 MiB at most. If lines are omitted, a line in their place has their number. This
        reads the shell log, so do not call it inside the window.
        """
        with self._lock:
            lines = self._lines.all()
        text = "".join(
            f"{_timestamp(line.when)}  {line.level.value}  {line.text} \n" for line in lines
        ) + "".join(f"{line}\n" for line in ("Tail of shell script log:", *self._shell_tail()))
        return text.encode()

    def warnings_and_errors(self) -> tuple[Line, ...]:
        """Returns the warnings and errors, for events: the first and the last ones, about 256 KiB at most."""
        with self._lock:
            return self._for_events.all()

    def _add(self, level: Level, text: str) -> None:
        line = Line(_now(), level, _clean(text))
        with self._lock:
            if level is not Level.INFO:
                self._for_events.add(line)
            if self._discarding:
                self._discarded += 1
                return
            self._lines.add(line)
            if self._file is None:
                return
            # The format of the file has no level, so warnings and errors begin with theirs.
            mark = "" if level is Level.INFO else f"{level.value}: "
            self._unwritten += f"{_timestamp(line.when)} [{self._writer}]{mark}{line.text}\n".encode()
            excess = len(self._unwritten) - _UNWRITTEN_BYTES
            if excess > 0:
                del self._unwritten[: self._unwritten.index(b"\n", excess) + 1]
            self._write()

    def _write(self) -> None:
        if self._file is None or self._suspended or not self._unwritten:
            return
        try:
            written = _append(self._file, bytes(self._unwritten))
        except OSError as error:
            self._warn_once(error)
            return
        del self._unwritten[:written]

    def _warn_once(self, error: OSError) -> None:
        """Adds the reason why the file is not written to the log blob and to the events."""
        if not self._has_warned:
            self._has_warned = True
            cause = (error.strerror or type(error).__name__).lower()
            line = Line(_now(), Level.WARNING, _clean(f"could not write to `{self._file}`: {cause}"))
            self._lines.add(line)
            self._for_events.add(line)

    def _shell_tail(self) -> list[str]:
        if self._folder is None:
            return []
        try:
            with os.fdopen(open_existing(self._folder / SHELL_LOG, os.O_RDONLY), "rb") as file:
                size_bytes = file.seek(0, os.SEEK_END)
                start = file.seek(max(0, size_bytes - SHELL_TAIL_LINES * LINE_LIMIT_CHARACTERS))
                lines = file.read().splitlines()
        except OSError:
            return []
        if start > 0:
            # The rest of a line, which may be the rest of a signature and no longer look like one.
            del lines[:1]
        return [_clean(line.decode(errors="replace")) for line in lines[-SHELL_TAIL_LINES:]]


def shell_line(log_folder: Path | None, text: str) -> None:
    """Adds a line to the shell log, which records commands and not backups. A failure is ignored."""
    if log_folder is not None:
        with contextlib.suppress(OSError):
            _append(log_folder / SHELL_LOG, f"{_timestamp(_now())} {_clean(text)}\n".encode())


class _BoundedLines:
    """The first and the last of many lines. One line in between has the number of omitted lines."""

    def __init__(self, head_limit_bytes: int, tail_limit_bytes: int) -> None:
        self._head: list[Line] = []
        self._head_left_bytes = head_limit_bytes
        self._tail: deque[tuple[Line, int]] = deque()
        self._tail_left_bytes = tail_limit_bytes
        self._left_out = 0
        self._last_left_out: Line | None = None

    def add(self, line: Line) -> None:
        size_bytes = len(line.text.encode()) + _LINE_OVERHEAD_BYTES
        if not self._tail and size_bytes <= self._head_left_bytes:
            self._head.append(line)
            self._head_left_bytes -= size_bytes
            return
        self._tail.append((line, size_bytes))
        self._tail_left_bytes -= size_bytes
        while self._tail_left_bytes < 0:
            self._last_left_out, size_bytes = self._tail.popleft()
            self._tail_left_bytes += size_bytes
            self._left_out += 1

    def all(self) -> tuple[Line, ...]:
        gap = []
        if self._last_left_out is not None:
            text = f"{self._left_out} lines are omitted here, because there were too many"
            gap = [Line(self._last_left_out.when, Level.WARNING, text)]
        return (*self._head, *gap, *(line for line, _ in self._tail))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _timestamp(when: datetime.datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S.%f")


def _clean(text: str) -> str:
    """Turns any text into one line without signatures, control characters and undecodable bytes."""
    if len(text) > LINE_LIMIT_CHARACTERS:
        # Cut first. The rest of a signature that is cut in two still looks like one.
        text = f"{text[:LINE_LIMIT_CHARACTERS]}... ({len(text)} characters)"
    # Signatures before control characters, because a signature may contain one.
    text = _CONTROL.sub(" ", redacted(text))
    # A path that is not UTF-8 contains surrogates.
    return text.encode(errors="backslashreplace").decode()


def _append(path: Path, content: bytes) -> int:
    """Appends to a log file that only its owner can read. Returns how many bytes were written.

    The file is opened for each line, so that a process finds the new file after another process rotated it.

    Raises:
        OSError: nothing was written.
    """
    descriptor = _open(path)
    try:
        return os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND
    descriptor = open_or_create(path, flags)
    if os.fstat(descriptor).st_size < ROTATE_AT_BYTES:
        return descriptor
    try:
        # One process locks the full file and renames it. A process that does not get the lock writes to it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            _rotate(path)
        successor = open_or_create(path, flags)
    except OSError:
        return descriptor
    os.close(descriptor)
    return successor


def _rotate(path: Path) -> None:
    for number in range(ROTATED_FILES, 1, -1):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.name}.{number - 1}").replace(path.with_name(f"{path.name}.{number}"))
    path.replace(path.with_name(f"{path.name}.1"))
