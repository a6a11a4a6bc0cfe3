"""Bare FIFREEZE and FITHAW for tests, on scratch filesystems only.

Each call blocks until the kernel returns, and nothing can interrupt it. Arm a rescue first
(`tests.support.rescue`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import processes
from tests.support.mounts import open_mount_directory

# linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878

_PROBE = "import os, sys; os.write(1, b'!'); os.utime(int(sys.argv[1]))"
_IOCTL = (
    "import fcntl, os, sys\n"
    "try: fcntl.ioctl(int(sys.argv[1]), int(sys.argv[2]), 0)\n"
    "except OSError as error: os._exit(error.errno)"
)


def freeze(path: Path) -> None:
    """Freezes a scratch filesystem. Raises `OSError`, with EBUSY if it is frozen already."""
    _ioctl(path, FIFREEZE)


def thaw(path: Path) -> None:
    """Thaws a scratch filesystem. Raises `OSError`, with EINVAL if it is not frozen."""
    _ioctl(path, FITHAW)


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Freezes a scratch filesystem for the block, in which another program may thaw it."""
    descriptor = open_mount_directory(path)
    try:
        fcntl.ioctl(descriptor, FIFREEZE, 0)
        try:
            yield
        finally:
            try:
                fcntl.ioctl(descriptor, FITHAW, 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
    finally:
        os.close(descriptor)


def start_freeze(path: Path) -> subprocess.Popen[bytes]:
    """Calls FIFREEZE in a process, for a freeze that hangs. Its exit status is 0 or the errno."""
    return _start(path, _IOCTL, FIFREEZE)


def start_thaw(path: Path) -> subprocess.Popen[bytes]:
    """Calls FITHAW in a process, for a thaw that hangs. Its exit status is 0 or the errno."""
    return _start(path, _IOCTL, FITHAW)


def is_frozen(path: Path, *, patience_seconds: float = 0.25) -> bool:
    """Returns whether a freeze blocks writers to a scratch filesystem. Never hangs.

    The kernel has no call for this question, so a child process sets the time stamp of the mount
    directory. That has to pass the gate that a freeze closes first, and waits for no disk. A child
    that is still stuck after ``patience_seconds`` means "frozen". It stays in state D until the
    thaw, and a later call reaps it. (FIFREEZE answers EBUSY on a frozen filesystem, but freezes any
    other; a remount can hang on s_umount.)

    Raises `OSError` if the child cannot be started.
    """
    processes.reap()
    probe = _start(path, _PROBE, output=subprocess.PIPE)
    if probe.stdout is None or probe.stdout.read(1) != b"!":
        processes.kill(probe)
        raise OSError(f"could not probe {path}: the probe did not start")
    try:
        status = probe.wait(timeout=patience_seconds)
    except subprocess.TimeoutExpired:
        processes.kill(probe, limit_seconds=0)
        return True
    probe.stdout.close()
    if status != 0:
        raise OSError(f"could not probe {path}: exit status {status}")
    return False


def _ioctl(path: Path, request: int) -> None:
    descriptor = open_mount_directory(path)
    try:
        fcntl.ioctl(descriptor, request, 0)
    finally:
        os.close(descriptor)


def _start(
    path: Path, program: str, *arguments: int, output: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    descriptor = open_mount_directory(path)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, str(descriptor), *map(str, arguments)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=output,
        )
    finally:
        os.close(descriptor)
