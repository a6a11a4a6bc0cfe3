"""How long FIFREEZE takes on slow disks: the measurement behind the default of ``--freeze-timeout``.

    python -m tests.bench.becoming_frozen

It needs root and cgroup v1 (``blkio.throttle``), which slows the loop device down. Each repetition writes
dirty data, calls syncfs with the run's default limit, and calls FIFREEZE. A writer streams meanwhile, or not.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support import freezing
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems, scratch_directory
from tests.support.rescue import RescueThaw

THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
SYNC_LIMIT_SECONDS = 30.0
RESCUE_SECONDS = 60.0
REPETITIONS = 3
DIRTY_MIB = 64
_STREAM = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
block = os.urandom(1 << 20)
while True:
    os.lseek(file, 0, os.SEEK_SET)
    for _ in range(96):
        os.write(file, block)
"""
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Prints one row per type, speed and load."""
    for filesystem_type in ("ext4", "xfs", "btrfs"):
        for mib_per_second in (32, 8):
            for is_streaming in (False, True):
                with scratch_directory() as directory, ScratchFilesystems(directory) as scratch:
                    filesystem = scratch.make_on_loop("slow", filesystem_type, size_mib=512)
                    rows = [measure(filesystem, mib_per_second, is_streaming) for _ in range(REPETITIONS)]
                syncs, freezes = ([row[part] for row in rows] for part in (0, 1))
                load = "streaming writer" if is_streaming else f"{DIRTY_MIB} MiB dirty"
                print(
                    f"{filesystem_type:5} {mib_per_second:2} MiB/s  {load:16}  "
                    f"syncfs {statistics.median(syncs):6.2f} s  "
                    f"FIFREEZE {statistics.median(freezes):6.2f} s (max {max(freezes):.2f})",
                    flush=True,
                )


def measure(filesystem: ScratchFilesystem, mib_per_second: int, is_streaming: bool) -> tuple[float, float]:
    """Returns how long syncfs (up to its limit) and FIFREEZE took, in seconds."""
    number = filesystem.device.stat().st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    rescue = RescueThaw([filesystem.mount_point], RESCUE_SECONDS)
    writer = None
    THROTTLE.write_text(f"{device} {mib_per_second << 20}")
    try:
        (filesystem.mount_point / "dirty").write_bytes(os.urandom(DIRTY_MIB << 20))
        if is_streaming:
            file = filesystem.mount_point / "stream"
            writer = subprocess.Popen([sys.executable, "-c", _STREAM, file])
            time.sleep(1.0)
        directory = os.open(filesystem.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        start = time.monotonic()
        syncing = threading.Thread(target=_LIBC.syncfs, args=(directory,), daemon=True)
        syncing.start()
        syncing.join(SYNC_LIMIT_SECONDS)
        synced = time.monotonic()
        freezing.freeze(filesystem.mount_point)
        frozen = time.monotonic()
        freezing.thaw(filesystem.mount_point)
        return synced - start, frozen - synced
    finally:
        THROTTLE.write_text(f"{device} 0")
        if writer is not None:
            writer.kill()
            writer.wait(30.0)
        syncing.join(SYNC_LIMIT_SECONDS)
        os.close(directory)
        rescue.cancel()


if __name__ == "__main__":
    main()
