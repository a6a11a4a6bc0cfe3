"""Identifies processes even if their ids are reused, ends them, and moves them out of a service's group."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import vmsnapshot

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_SECONDS = 0.02
KILL_LIMIT_SECONDS = 5.0
# A move takes some 10 ms. It could wait for ever if the kernel cannot finish another process's fork.
_MOVE_LIMIT_SECONDS = 2.0


@dataclass(frozen=True)
class ProcessName:
    """Identifies a process of one boot of this machine."""

    pid: int
    start_ticks: int
    """Its start time in the kernel's ticks since boot (field 22 of ``/proc/PID/stat``)."""
    boot_id: str

    def is_alive(self) -> bool:
        """Returns whether the process still exists. A zombie does not count."""
        return self.boot_id == _boot_id() and _start_ticks(self.pid) == self.start_ticks

    def end(self, *, patience_seconds: float) -> bool:
        """Sends SIGTERM, waits, and kills the process if that takes too long.

        Returns True if the process ended by itself.

        Blocking: `patience_seconds`, and a few seconds more if it has to be killed.
        """
        self.ask_to_end()
        if self.wait(patience_seconds):
            return True
        self.kill()
        return False

    def ask_to_end(self) -> None:
        """Sends SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self, limit_seconds: float = KILL_LIMIT_SECONDS) -> None:
        """Sends SIGKILL, and waits a little. The watchdog thaws what the process has frozen.

        Blocking: `limit_seconds`, if a thread of it waits for a disk.
        """
        self._signal(signal.SIGKILL)
        self.wait(limit_seconds)

    def reap(self, limit_seconds: float = KILL_LIMIT_SECONDS) -> None:
        """Removes the zombie of a child of this process that was killed, as soon as its last thread is gone.

        Blocking: `limit_seconds`, if a thread of it waits for a disk.
        """
        until = time.monotonic() + limit_seconds
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0) and time.monotonic() < until:
                time.sleep(_POLL_SECONDS)

    def wait(self, limit_seconds: float) -> bool:
        """Waits until the process has ended. Returns False at the limit."""
        until = time.monotonic() + limit_seconds
        while self.is_alive():
            if time.monotonic() >= until:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def name_of(pid: int) -> ProcessName | None:
    """Returns the identity of a running process, or `None` if there is no such process."""
    start_ticks = _start_ticks(pid)
    return None if start_ticks is None else ProcessName(pid, start_ticks, _boot_id())


def begin_to_move(pid: int, role: str) -> Callable[[], bool]:
    """Begins to move a child into a control group of its own, which does not end with a service.

    The child must not have been waited for. The function that is returned waits for the move, two seconds at
    most, and returns whether the child was moved. Call it before this command returns: its service may end
    then, and a service manager kills what is still in the group of the service.
    """
    moved = []

    def move() -> None:
        moved.append(vmsnapshot.give_control_group(pid, role))

    # Beside the caller's work, because the kernel waits for an RCU grace period.
    moving = threading.Thread(target=move, daemon=True)
    moving.start()

    def is_moved() -> bool:
        moving.join(_MOVE_LIMIT_SECONDS)
        return moved == [True]

    return is_moved


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name of the command, in parentheses, may contain any character. The fields after the last `)` may
    # not.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
