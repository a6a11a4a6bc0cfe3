"""The process behind `tests.support.rescue`: at its deadline it thaws the filesystems whose fds it was given.

It runs as a script (``python -I -S rescue_process.py AFTER_S LINGER_S RCU_FD FD...``), needs only
the standard library, and opens nothing after it has printed ``armed``. It has one thread per
filesystem, because a FITHAW can hang until another filesystem is thawed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import threading
import time

FITHAW = 0xC0045878
ASK_AGAIN_SECONDS = 0.02


def main() -> None:
    """Waits for a ``c`` (cancel) on standard input or for the deadline. Prints what it thawed."""
    after_seconds, linger_seconds = float(sys.argv[1]), float(sys.argv[2])
    rcu_descriptor = int(sys.argv[3])
    descriptors = [int(word) for word in sys.argv[4:]]
    deadline = time.monotonic() + after_seconds
    rcu_before = os.pread(rcu_descriptor, 16, 0) if rcu_descriptor >= 0 else b""

    fired = threading.Event()
    thawed: set[int] = set()

    def thaw(index: int) -> None:
        """Repeats FITHAW until the time is up: after EINVAL, a waiting FIFREEZE may still succeed."""
        fired.wait()
        until = time.monotonic() + linger_seconds
        while True:
            try:
                fcntl.ioctl(descriptors[index], FITHAW, 0)
                thawed.add(index)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    return
            if time.monotonic() >= until:
                return
            time.sleep(ASK_AGAIN_SECONDS)

    threads = [threading.Thread(target=thaw, args=(index,), daemon=True) for index in range(len(descriptors))]
    for thread in threads:
        thread.start()
    os.write(1, b"armed\n")

    cancelled = wait_for_cancel(deadline)
    if not cancelled:
        fired.set()
        if rcu_descriptor >= 0 and os.pread(rcu_descriptor, 16, 0) != rcu_before:
            os.pwrite(rcu_descriptor, rcu_before, 0)
        wait_for_cancel(time.monotonic() + linger_seconds)
        for thread in threads:
            thread.join(timeout=0.5)
    os.write(1, b" ".join(str(index).encode() for index in sorted(thawed)) + b"\n")
    # sys.exit would wait for threads that may hang.
    os._exit(0)


def wait_for_cancel(deadline: float) -> bool:
    """Returns whether the owner cancelled before the deadline. An owner that died has not cancelled."""
    while (remaining := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([0], [], [], remaining)
        if readable:
            word = os.read(0, 1)
            if word == b"c":
                return True
            if not word:
                time.sleep(max(0.0, deadline - time.monotonic()))
    return False


if __name__ == "__main__":
    main()
