"""Child processes with a limit on every wait.

A process that is stuck on a frozen filesystem is in state D, and no signal reaches it before the
thaw. So no function here waits for a killed process without a limit, as ``subprocess.run`` does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Killed processes that have not ended yet, to be reaped later.
_unreaped: list[subprocess.Popen[bytes]] = []


class CommandError(Exception):
    """A command failed, or did not end in time."""


def run_bounded(arguments: Sequence[str | Path], *, limit_seconds: float = 30.0) -> str:
    """Runs a command and returns its standard output.

    Raises `CommandError` if it fails, or if it does not end within the limit and is killed.
    """
    reap()
    words = [str(argument) for argument in arguments]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except BaseException as cause:
        kill(process)
        if isinstance(cause, subprocess.TimeoutExpired):
            raise CommandError(f"{' '.join(words)}: did not end within {limit_seconds} s") from None
        raise
    if process.returncode != 0:
        text = errors.decode(errors="replace").strip()
        raise CommandError(f"{' '.join(words)}: exit status {process.returncode}: {text}")
    return output.decode(errors="replace")


def end(process: subprocess.Popen[bytes], *, limit_seconds: float) -> bool:
    """Waits for a process to end, and kills it at the limit. Returns whether it ended by itself."""
    try:
        process.wait(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return False
    _close_pipes(process)
    return True


def kill(process: subprocess.Popen[bytes], *, limit_seconds: float = 2.0) -> bool:
    """Sends SIGKILL and waits at most the limit. Returns False if the process is still there, in state D."""
    process.kill()
    _close_pipes(process)
    try:
        process.wait(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        _unreaped.append(process)
        return False
    return True


def reap() -> int:
    """Reaps killed processes that have ended since. Returns how many have not. Never waits."""
    _unreaped[:] = [process for process in _unreaped if process.poll() is None]
    return len(_unreaped)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def obey_signals() -> None:
    """Undoes what the parent of this process ignores (nohup, some CI systems), for it and for its children.

    A program inherits ignored signals, and the product leaves them ignored. Tests that send them would fail.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)
