"""Holds one thread of a process, as a debugger does, while its other threads go on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
# waitpid of a thread that is not a child.
_WALL = 0x40000000

LIMIT_SECONDS = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def held_thread(thread: int) -> Iterator[None]:
    """Stops the thread with this id (the process's own id is that of its first thread), and lets it go on.

    SIGSTOP would stop every thread of its process.
    """
    _ptrace(_SEIZE, thread)
    try:
        _ptrace(_INTERRUPT, thread)
        until = time.monotonic() + LIMIT_SECONDS
        while os.waitpid(thread, _WALL | os.WNOHANG) == (0, 0):
            assert time.monotonic() < until, f"thread {thread} does not stop"
            time.sleep(0.001)
        yield
    finally:
        _ptrace(_DETACH, thread)


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
