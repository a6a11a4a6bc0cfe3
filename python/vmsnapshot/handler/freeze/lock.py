"""The lock that prevents two programs of Azure Backup from freezing the same VM at the same time.

Other extensions and the predecessor of this one use it too. It is an exclusive POSIX record lock on a file
with a fixed path. This module takes and releases the lock. While another program may hold it, nothing may be
frozen. The caller decides the outcome of such a job.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Callable

from vmsnapshot.errors import VmsnapshotError
from vmsnapshot.handler.files import open_existing, open_or_create

SAFE_FREEZE_LOCK_FILE = Path("/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock/SafeFreezeLockFile")

LIMIT_SECONDS = 35.0
"""How long the predecessor waits for the lock, as measured. Other programs rely on it."""

_TRY_EVERY_SECONDS = 0.1

# struct flock on 64-bit Linux (fcntl.h): type, whence, start, length, pid, padding.
_FLOCK = struct.Struct("hhqqi4x")


class LockHeldError(VmsnapshotError):
    """Another process held the lock during the whole wait. The code is ``lock-held``."""


class LockUnavailableError(VmsnapshotError):
    """The lock file could not be created, opened or locked. The code is ``lock-unavailable``.

    `is_missing` is true if there is no lock file, and it cannot be created: the disk is full, for example.
    Then most likely no other program holds the lock. It is no proof, because the predecessor deletes the file
    after its thaw, even if another process has locked it (contract 7.2).
    """

    def __init__(self, message: str, *, is_missing: bool) -> None:
        super().__init__(message, code="lock-unavailable", kind="system")
        self.is_missing = is_missing


class SafeFreezeLock:
    """The lock. It is held from the construction of this object until `close`, or until the process ends.

    A POSIX record lock belongs to the process and not to the descriptor (fcntl(2)). The process therefore
    loses it when it closes *any* descriptor of the lock file. Nothing else in this process may open that
    file. A second object of this type would get the lock at once, and its `close` would release the lock of
    the first. A forked child does not have the lock.

    The file is never deleted here. The predecessor deletes it even if another process holds the lock. If it
    does so before we have the lock, this class notices it. A later deletion cannot be prevented.
    """

    def __init__(
        self,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        give_up: Callable[[], bool] = lambda: False,
        path: Path = SAFE_FREEZE_LOCK_FILE,
    ) -> None:
        """Takes the lock.

        Blocking: at most `limit_seconds`, with a try every 100 ms. Zero means one try. `give_up` is called
        between tries, and ends the wait if it returns true.

        Raises:
            LockHeldError: another process still held it at the end of the wait.
            LockUnavailableError: the lock cannot be taken at all, for example because the disk is full.
        """
        self._descriptor: int | None = None
        started = time.monotonic()
        while True:
            descriptor, holder = _try(path)
            if descriptor is not None:
                self._descriptor = descriptor
                return
            waited_seconds = time.monotonic() - started
            left_seconds = limit_seconds - waited_seconds
            if left_seconds <= 0 or give_up():
                raise LockHeldError(
                    f"could not lock `{path}` within {waited_seconds:.2f} s: {holder} holds it",
                    code="lock-held",
                    kind="another-run",
                    hint="another backup of this VM is taking its snapshots; try again when it is done",
                )
            time.sleep(min(_TRY_EVERY_SECONDS, left_seconds))

    def close(self) -> None:
        """Releases the lock. Does nothing if it was released before."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> SafeFreezeLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _try(path: Path) -> tuple[int | None, str]:
    """Tries once. Returns the descriptor of the locked file, or `None` and the holder of the lock."""
    descriptor = None
    try:
        # One by one, because `parents=True` does not apply the mode to the parents, and the umask may be 0.
        for directory in (path.parent.parent, path.parent):
            directory.mkdir(mode=0o755, exist_ok=True)
        descriptor, operation = _open(path)
        holder = _lock(descriptor, operation, path)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise LockUnavailableError(
            f"could not lock `{path}`: {(error.strerror or str(error)).lower()}",
            is_missing=_is_missing(path),
        ) from None
    if holder is None:
        return descriptor, "this process"
    os.close(descriptor)
    return None, holder


def _open(path: Path) -> tuple[int, int]:
    """Opens the file. Returns its descriptor, and the kind of lock that the descriptor allows."""
    try:
        # Without O_TRUNC, because the file may belong to another program.
        return open_or_create(path, os.O_WRONLY), fcntl.LOCK_EX
    except OSError as error:
        if error.errno != errno.EROFS or _is_missing(path):
            raise
    # After an error the kernel may have made the filesystem read-only. A shared lock, and the exclusive lock
    # of another program, exclude each other.
    return open_existing(path, os.O_RDONLY), fcntl.LOCK_SH


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _lock(descriptor: int, operation: int, path: Path) -> str | None:
    """Locks the file. Returns the holder if another process has locked it, or `None` on success."""
    try:
        fcntl.lockf(descriptor, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        # EAGAIN or EACCES (fcntl(2)).
        return _holder(descriptor)
    # The lock of a deleted file excludes no other process.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return None
    return "the program that deleted the file"


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        # 0 means a process in another pid namespace, and -1 a lock that belongs to an open file.
        if kind != fcntl.F_UNLCK and pid > 0:
            return f"process {pid}"
    return "another process"
