"""The lock that keeps two programs of Azure Backup from freezing the same VM at once.

It is shared with other extensions and with the predecessor of this one: an exclusive POSIX record lock on a
file whose place is fixed. This file takes it and gives it back; what a run without the lock comes to is
decided elsewhere, but without the lock nothing may be frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Callable

from vmsnapshot.errors import VmsnapshotError

SAFE_FREEZE_LOCK_FILE = Path("/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock/SafeFreezeLockFile")

LIMIT_SECONDS = 35.0
"""How long the predecessor waits for the lock, measured; others count on that patience."""

_TRY_EVERY_SECONDS = 0.1

# struct flock on 64-bit Linux (fcntl.h): type, whence, start, length, pid, padding.
_FLOCK = struct.Struct("hhqqi4x")


class LockHeldError(VmsnapshotError):
    """Another process had the lock for as long as we waited; its code is ``lock-held``."""


class LockUnavailableError(VmsnapshotError):
    """The lock file could not be made, opened or locked; its code is ``lock-unavailable``."""


class SafeFreezeLock:
    """The lock, held from the making of this value until `close` or the end of the process.

    A POSIX record lock belongs to the process and not to the descriptor (fcntl(2)). It is therefore lost as
    soon as the process closes *any* descriptor of the lock file: nothing else in this process may open it,
    and a second value of this type, which would be given the lock at once, takes it away when it is closed.
    A child made by fork does not have the lock.

    The file is never deleted. The predecessor deletes it, even when the lock is another's; what it deletes
    before we have the lock is noticed here, what it deletes later cannot be prevented.
    """

    def __init__(
        self,
        *,
        limit_seconds: float = LIMIT_SECONDS,
        give_up: Callable[[], bool] = lambda: False,
        path: Path = SAFE_FREEZE_LOCK_FILE,
    ) -> None:
        """Takes the lock.

        Blocking: at most `limit_seconds`, in tries 100 ms apart; zero means one try. `give_up` is asked
        between tries and ends the waiting early.

        Raises:
            LockHeldError: another process still had it in the end.
            LockUnavailableError: there cannot be such a lock, for instance because ``/etc`` is read-only.
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
                    f"could not lock `{path}` within {waited_seconds:.2f} s: {holder} has it",
                    code="lock-held",
                    kind="another-run",
                    hint="another backup of this VM is taking its snapshots; try again when it is done",
                )
            time.sleep(min(_TRY_EVERY_SECONDS, left_seconds))

    def close(self) -> None:
        """Gives the lock back. Does nothing when it was given back before."""
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
    """Tries once: the locked file's descriptor if we have the lock, and who has it if not."""
    descriptor = None
    try:
        # One by one: a mode given with `parents=True` is not that of the parents, and the umask may be 0.
        for directory in (path.parent.parent, path.parent):
            directory.mkdir(mode=0o755, exist_ok=True)
        # Not truncated, because it may be another's; not inheritable, as every descriptor of Python.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        holder = _lock(descriptor, path)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise LockUnavailableError(
            f"could not lock `{path}`: {(error.strerror or str(error)).lower()}",
            code="lock-unavailable",
            kind="system",
        ) from None
    if holder is None:
        return descriptor, "this process"
    os.close(descriptor)
    return None, holder


def _lock(descriptor: int, path: Path) -> str | None:
    """Locks the file unless another has it; returns who that is, none if we have the lock now."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        # EAGAIN or EACCES (fcntl(2)).
        return _holder(descriptor)
    # The lock of a file that has been deleted excludes nobody.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return None
    return "whoever deleted the file"


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        # 0 is a process of another pid namespace, -1 a lock that belongs to an open file.
        if kind != fcntl.F_UNLCK and pid > 0:
            return f"process {pid}"
    return "another process"
