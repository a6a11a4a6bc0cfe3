"""The rescue thaw: an independent process that thaws what a test froze, even if the test dies."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.support import processes
from tests.support.mounts import open_mount_directory

RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")

_PROGRAM = Path(__file__).with_name("rescue_process.py")


class RescueThaw:
    """Thaws all ``paths`` and restores RCU in ``after_seconds``, unless it is cancelled.

    It is a process in its own session that has opened its files beforehand, so neither a SIGKILL of
    the test nor a frozen filesystem stops it. It repeats FITHAW for ``linger_seconds`` after its
    deadline, because a FIFREEZE in progress may still complete. Its open files keep the filesystems
    busy: cancel it before an unmount.
    """

    def __init__(
        self, paths: Sequence[Path], after_seconds: float = 10.0, *, linger_seconds: float = 5.0
    ) -> None:
        self.paths = list(paths)
        self.thawed: list[Path] | None = None
        """What the rescue had to thaw. None before `cancel` or `wait`."""
        descriptors: list[int] = []
        rcu_descriptor = -1
        try:
            descriptors.extend(open_mount_directory(path) for path in self.paths)
            with contextlib.suppress(OSError):
                rcu_descriptor = os.open(RCU_EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
            inherited = [*descriptors, *([rcu_descriptor] if rcu_descriptor >= 0 else [])]
            numbers = (after_seconds, linger_seconds, rcu_descriptor, *descriptors)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), *map(str, numbers)],
                pass_fds=inherited,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            for descriptor in [*descriptors, *([rcu_descriptor] if rcu_descriptor >= 0 else [])]:
                os.close(descriptor)
        if self._process.stdout is None or self._process.stdout.readline() != b"armed\n":
            processes.kill(self._process)
            raise RuntimeError("the rescue thaw could not be armed")

    def cancel(self) -> list[Path]:
        """Ends the rescue within a few seconds. Returns what it had to thaw."""
        if self.thawed is None:
            with contextlib.suppress(BrokenPipeError):
                if self._process.stdin is not None:
                    self._process.stdin.write(b"c")
                    self._process.stdin.flush()
            self.thawed = self._collect(limit_seconds=5.0)
        return self.thawed

    def wait(self, limit_seconds: float) -> list[Path]:
        """Waits until the rescue has fired and finished. Returns what it had to thaw."""
        if self.thawed is None:
            self.thawed = self._collect(limit_seconds=limit_seconds)
        return self.thawed

    def __enter__(self) -> RescueThaw:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _collect(self, *, limit_seconds: float) -> list[Path]:
        try:
            self._process.wait(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            processes.kill(self._process)
            raise RuntimeError("the rescue thaw did not end: one of its thaws hangs") from None
        output = self._process.stdout.read() if self._process.stdout is not None else b""
        processes.end(self._process, limit_seconds=0)
        return [self.paths[int(word)] for word in output.split()]


def thaw_at_once(paths: Sequence[Path], *, limit_seconds: float = 10.0) -> list[Path]:
    """Thaws those of ``paths`` that are frozen, in parallel, and returns them. Scratch filesystems only."""
    return RescueThaw(paths, after_seconds=0.0, linger_seconds=0.05).wait(limit_seconds) if paths else []
