"""The command as its users run it: as a process, with a limit on every wait.

Every snapshot names its mounts. Without a name it would freeze the machine that runs the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import processes
from tests.support.fault_server import FaultServer

COMMAND = Path(sys.executable).with_name("vmsnapshot")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """The document that ``--json`` printed."""
        return json.loads(self.output)

    @property
    def error_code(self) -> str:
        """The code of the error that ``--json`` printed."""
        return str(self.document["error"]["code"])


def run_command(
    *arguments: str | Path,
    standard_input: str = "",
    environment: dict[str, str] | None = None,
    before: Sequence[str] = (),
    limit_seconds: float = 20.0,
) -> Finished:
    """Runs ``vmsnapshot`` with the words ``before`` in front (setpriv, unshare). Kills it at the limit."""
    process = subprocess.Popen(
        [*before, str(COMMAND), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    return _finish(process, standard_input.encode(), limit_seconds)


def read_status() -> Any:
    """Returns the document of ``vmsnapshot status --json``."""
    return run_command("status", "--json").document


def run_of(status: Any, run_id: str) -> Any:
    """Returns one run of a status document."""
    (run,) = (run for run in status["runs"] if run["run_id"] == run_id)
    return run


def snapshot_arguments(
    mount_points: Sequence[Path], *options: str | Path, thaw_timeout: float = 5.0
) -> list[str | Path]:
    """Returns the arguments of a snapshot of exactly these mounts. Its blobs come on standard input.

    The call timeout is the thaw timeout, so that a run whose server never answers ends soon after its thaw.
    """
    assert mount_points, "a snapshot without a mount would freeze this machine"
    mounts = [f"--mount=mount={mount_point}" for mount_point in mount_points]
    timeouts = [f"--thaw-timeout={thaw_timeout}", f"--call-timeout={thaw_timeout}"]
    return ["snapshot", "--json", "--no-proxy", "--blobs-from=-", *timeouts, *mounts, *options]


def take_snapshot(
    mount_points: Sequence[Path],
    uris: Sequence[str],
    *options: str | Path,
    thaw_timeout: float = 5.0,
    before: Sequence[str] = (),
) -> Finished:
    """Runs ``vmsnapshot snapshot --json`` to its end."""
    return run_command(
        *snapshot_arguments(mount_points, *options, thaw_timeout=thaw_timeout),
        standard_input="\n".join(uris),
        before=before,
    )


class SnapshotRun:
    """A running ``vmsnapshot snapshot --json``, in its own session and process group.

    A context manager that kills the process if it is still alive at the end.
    """

    def __init__(
        self,
        mount_points: Sequence[Path],
        uris: Sequence[str],
        *options: str | Path,
        thaw_timeout: float = 5.0,
        output: int = subprocess.PIPE,
        errors: int = subprocess.PIPE,
        before: Sequence[str] = (),
    ) -> None:
        arguments = snapshot_arguments(mount_points, *options, thaw_timeout=thaw_timeout)
        self.process = subprocess.Popen(
            [*before, str(COMMAND), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write("\n".join(uris).encode())
        self.process.stdin.close()
        self.process.stdin = None

    def wait_until_open(self, server: FaultServer, *, requests: int = 1, limit_seconds: float = 15.0) -> None:
        """Waits until ``server`` has received the requests of this run. By then everything is frozen."""
        until = time.monotonic() + limit_seconds
        while len(server.requests()) < requests:
            if self.process.poll() is not None:
                raise AssertionError(f"the run ended before its window: {self.finish()}")
            assert time.monotonic() < until, "the window did not open"
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> int:
        """Sends a signal to the process. Returns the instant just before (CLOCK_MONOTONIC, nanoseconds)."""
        now_ns = time.monotonic_ns()
        self.process.send_signal(number)
        return now_ns

    def run_id(self) -> str:
        """Returns the id of the run, from the machine's status."""
        (run_id,) = (
            run["run_id"] for run in read_status()["runs"] if run["pid"] == self.process.pid and run["alive"]
        )
        return str(run_id)

    def finish(self, *, limit_seconds: float = 20.0) -> Finished:
        """Waits until the process has ended."""
        return _finish(self.process, None, limit_seconds)

    def __enter__(self) -> SnapshotRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            processes.kill(self.process)
        else:
            processes.end(self.process, limit_seconds=0)


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int, *, limit_seconds: float = 5.0) -> None:
    """Waits until a process has ended, which need not be a child of this one."""
    until = time.monotonic() + limit_seconds
    while is_running(pid):
        assert time.monotonic() < until, f"process {pid} did not end"
        time.sleep(0.005)


def _finish(process: subprocess.Popen[bytes], standard_input: bytes | None, limit_seconds: float) -> Finished:
    try:
        output, errors = process.communicate(standard_input, timeout=limit_seconds)
    except BaseException as cause:
        processes.kill(process)
        if isinstance(cause, subprocess.TimeoutExpired):
            raise AssertionError(f"vmsnapshot did not end within {limit_seconds} s") from None
        raise
    return Finished(
        process.returncode, (output or b"").decode(errors="replace"), (errors or b"").decode(errors="replace")
    )
