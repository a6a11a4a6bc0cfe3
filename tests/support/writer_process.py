"""The process behind `tests.support.writers`: it writes, waits for the disk, and records how long that took.

It runs as a script (``python -I -S writer_process.py FILE_FD MEMORY_FD INTERVAL_NS PARENT_PID``).
It shares the memory with its parent. The memory is never on the filesystem under test, and `Layout`
describes it.
"""

from __future__ import annotations

import gc
import mmap
import os
import sys
import time


class Layout:
    """The shared memory, in 64-bit words: a header, then a ring of (start, length) pairs in nanoseconds."""

    STOP = 0
    """The parent writes 1 here to end the writer."""
    COUNT = 1
    """How many writes have completed."""
    IN_FLIGHT_SINCE = 2
    """When the write in progress began (CLOCK_MONOTONIC), or 0."""
    RING = 8
    RING_LENGTH = 32768
    WORDS = RING + 2 * RING_LENGTH


BLOCK_BYTES = 4096
FILE_BLOCKS = 256


def main() -> None:
    """Overwrites the preallocated file block by block, with one write and fdatasync per interval."""
    file, memory_descriptor, interval_ns, parent = (int(word) for word in sys.argv[1:])
    gc.disable()
    memory = memoryview(mmap.mmap(memory_descriptor, Layout.WORDS * 8)).cast("Q")
    block = os.urandom(BLOCK_BYTES)
    clock, pwrite, fdatasync = time.monotonic_ns, os.pwrite, os.fdatasync
    count = 0
    due = clock()
    while not memory[Layout.STOP]:
        start = clock()
        memory[Layout.IN_FLIGHT_SINCE] = start
        pwrite(file, block, count % FILE_BLOCKS * BLOCK_BYTES)
        fdatasync(file)
        length = clock() - start
        slot = Layout.RING + 2 * (count % Layout.RING_LENGTH)
        memory[slot] = start
        memory[slot + 1] = length
        count += 1
        # In this order a reader sees the stall in progress, or finished, or both, and never misses it.
        memory[Layout.COUNT] = count
        memory[Layout.IN_FLIGHT_SINCE] = 0
        due = max(due + interval_ns, start)
        pause = due - clock()
        if pause > 0:
            time.sleep(pause / 1e9)
        if count % 256 == 0 and os.getppid() != parent:
            return


if __name__ == "__main__":
    main()
