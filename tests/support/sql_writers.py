"""Clients that write one row after another, and note when each was asked for and acknowledged."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.support import processes


@dataclass
class Written:
    """One row: its number, and the instants of `time.time_ns` when it was asked for and acknowledged."""

    number: int
    asked_at_ns: int
    acknowledged_at_ns: int | None = None


@dataclass
class SqlWriter:
    """One session. `statement` has ``{writer}`` and ``{number}``, and prints the number at its end."""

    writer: int
    client: Sequence[str]
    statement: str
    rows: list[Written] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            self.client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the session after the row that it is writing."""
        self._is_stopped.set()
        self._thread.join(timeout=20)
        processes.kill(self._process)

    def _write(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        number = 0
        while not self._is_stopped.is_set():
            number += 1
            row = Written(number, time.time_ns())
            self.rows.append(row)
            self._process.stdin.write(
                self.statement.format(writer=self.writer, number=number).encode() + b"\n"
            )
            if self._process.stdout.readline() != f"{number}\n".encode():
                return
            row.acknowledged_at_ns = time.time_ns()


@contextlib.contextmanager
def sql_writers(count: int, client: Sequence[str], statement: str) -> Iterator[list[SqlWriter]]:
    """Runs writers for the length of a block."""
    writers = [SqlWriter(writer, client, statement) for writer in range(count)]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stop()


def assert_rows_of_a_moment(
    writers: Sequence[SqlWriter], found: dict[int, list[int]], *, held_at_ns: int, released_at_ns: int
) -> None:
    """Checks the rows that a restored server has, by writer: all that were acknowledged before the server was
    held are there, none that was asked for after its release, and none in between is missing."""
    for writer in writers:
        numbers = found.get(writer.writer, [])
        assert numbers == list(range(1, len(numbers) + 1)), f"writer {writer.writer} has gaps"
        acknowledged = sum(
            row.acknowledged_at_ns is not None and row.acknowledged_at_ns < held_at_ns
            for row in list(writer.rows)
        )
        asked = sum(row.asked_at_ns < released_at_ns for row in list(writer.rows))
        assert acknowledged <= len(numbers) <= asked, (
            f"writer {writer.writer}: {acknowledged} acknowledged, {len(numbers)} found, {asked} asked for"
        )
        assert acknowledged > 0
