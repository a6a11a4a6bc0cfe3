"""Writers that measure a freeze: every millisecond each writes 4 KiB, waits for the disk, and times that."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support import processes
from tests.support.writer_process import BLOCK_BYTES, FILE_BLOCKS, Layout

_PROGRAM = Path(__file__).with_name("writer_process.py")


@dataclass(frozen=True)
class Stall:
    """One write with its fdatasync: when it began (CLOCK_MONOTONIC) and how long it took."""

    start_ns: int
    length_ms: float


class Writer:
    """A process that writes to a file in ``directory`` until it is stopped. A context manager.

    The figures are in shared memory, so they can be read while the writer is stuck. The memory
    holds the last 32,768 writes: half a minute at one per millisecond.
    """

    def __init__(self, directory: Path, *, interval_ms: float = 1.0) -> None:
        self.directory = directory
        path = directory / "writer.data"
        memory_descriptor = os.memfd_create("vmsnapshot-writer")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(memory_descriptor, Layout.WORDS * 8)
            self._memory = memoryview(mmap.mmap(memory_descriptor, Layout.WORDS * 8)).cast("Q")
            os.posix_fallocate(file, 0, BLOCK_BYTES * FILE_BLOCKS)
            os.pwrite(file, bytes(BLOCK_BYTES * FILE_BLOCKS), 0)
            os.fsync(file)
            numbers = (file, memory_descriptor, int(interval_ms * 1e6), os.getpid())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, numbers)],
                pass_fds=[file, memory_descriptor],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the terminal must not reach it: `stop` ends it.
                start_new_session=True,
            )
        finally:
            os.close(file)
            os.close(memory_descriptor)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def writes(self) -> int:
        """How many writes have completed."""
        return self._memory[Layout.COUNT]

    def wait_until_writing(self, *, writes: int = 20, limit_seconds: float = 10.0) -> None:
        """Waits until ``writes`` more writes have completed."""
        wanted = self.writes + writes
        until = time.monotonic() + limit_seconds
        while self.writes < wanted:
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"the writer in {self.directory} does not write")
            time.sleep(0.001)

    def stalls(self, *, since_ns: int = 0, longer_than_ms: float = 0.0) -> list[Stall]:
        """Returns the writes that ended after ``since_ns`` or are still in progress, oldest first.

        Raises `ValueError` if ``since_ns`` is before the oldest write in the memory.
        """
        # Read the write in progress first: if it ends meanwhile, it is in the ring as well.
        in_flight_since = self._memory[Layout.IN_FLIGHT_SINCE]
        now = time.monotonic_ns()
        count = self._memory[Layout.COUNT]
        first = max(0, count - Layout.RING_LENGTH + 1)
        found: list[Stall] = []
        for index in range(count - 1, first - 1, -1):
            slot = Layout.RING + 2 * (index % Layout.RING_LENGTH)
            start, length = self._memory[slot], self._memory[slot + 1]
            if start + length < since_ns:
                break
            found.append(Stall(start, length / 1e6))
        else:
            if first > 0:
                raise ValueError(f"the writer in {self.directory} keeps its last {Layout.RING_LENGTH} writes")
        found.reverse()
        if in_flight_since and (not found or found[-1].start_ns < in_flight_since):
            found.append(Stall(in_flight_since, (now - in_flight_since) / 1e6))
        return [stall for stall in found if stall.length_ms > longer_than_ms]

    def longest_stall_ms(self, *, since_ns: int = 0) -> float:
        """Returns the longest of `stalls`, or 0."""
        return max((stall.length_ms for stall in self.stalls(since_ns=since_ns)), default=0.0)

    def tell_to_stop(self) -> None:
        """Asks the writer to end after the write in progress. Returns at once."""
        self._memory[Layout.STOP] = 1

    def stop(self, *, limit_seconds: float = 2.0) -> bool:
        """Ends the writer, with SIGKILL at the limit. Returns whether it ended by itself.

        False means that it was stuck. If the filesystem is frozen, the process ends at the thaw.
        """
        self.tell_to_stop()
        return processes.end(self._process, limit_seconds=limit_seconds)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def writing(directories: Sequence[Path], *, interval_ms: float = 1.0) -> Iterator[list[Writer]]:
    """Runs one writer per directory. All of them write before the block begins, and stop after it."""
    writers: list[Writer] = []
    try:
        writers.extend(Writer(directory, interval_ms=interval_ms) for directory in directories)
        for writer in writers:
            writer.wait_until_writing()
        yield writers
    finally:
        for writer in writers:
            writer.tell_to_stop()
        for writer in writers:
            writer.stop()
