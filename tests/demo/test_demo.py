"""``make demo`` succeeds, and removes what it made whenever it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_azurite
from tests.demo.interruptions import InterruptedBySignalError, Interruptions
from tests.support import processes
from tests.support.filesystems import REPOSITORY, loop_devices_below
from tests.support.mounts import mounts_below
from tests.support.rescue import RCU_EXPEDITED

# The demo takes some seconds, and on a busy machine several times as long.
DEMO_LIMIT_SECONDS = 100.0


class RunningDemo:
    """A demo in its own process group, as a shell starts it, with a marker in its environment."""

    def __init__(self) -> None:
        self.marker = f"VMSNAPSHOT_TEST_DEMO={uuid.uuid4()}"
        self.rcu_before = read_rcu()
        name, _, value = self.marker.partition("=")
        self.process = subprocess.Popen(
            # A shell ignores SIGINT for background jobs, and the demo would inherit that.
            ["env", "--default-signal=INT", sys.executable, "-m", "tests.demo"],
            cwd=REPOSITORY,
            env={**os.environ, name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.output = b""

    def read_until(self, text: bytes) -> None:
        """Reads its output up to the line that contains ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"the demo ended before {text!r}: {self.output.decode()}")

    def signal_as_terminal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def wait(self) -> int:
        """Returns its exit status."""
        output, _ = self.process.communicate(timeout=DEMO_LIMIT_SECONDS)
        self.output += output
        return self.process.returncode

    def left_over(self) -> list[str]:
        """Returns what is left of it: directories, mounts, loop devices, processes, expedited RCU."""
        work = REPOSITORY / ".work"
        ours = f"{work}/run-{self.process.pid}-"
        left = [str(path) for path in work.iterdir() if str(path).startswith(ours)]
        left += [str(mount) for mount in mounts_below(work) if str(mount.mount_point).startswith(ours)]
        for device, file in loop_devices_below(work):
            if str(file).startswith(ours):
                left.append(f"{device} on {file}")
        left += [f"process {pid}" for pid in processes_with(self.marker.encode())]
        if read_rcu() != self.rcu_before:
            left.append("rcu_expedited")
        return left


@pytest.fixture
def demo(root: None) -> Iterator[RunningDemo]:  # noqa: ARG001 (requested for its effect)
    """Starts a demo, and ends it after the test."""
    require_azurite()
    running = RunningDemo()
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        processes.end(running.process, limit_seconds=30.0)


def read_rcu() -> str:
    """Returns the machine's setting of expedited RCU."""
    return RCU_EXPEDITED.read_text() if RCU_EXPEDITED.exists() else ""


def processes_with(marker: bytes) -> list[int]:
    """Returns the processes with ``marker`` in their environment, after a second for those about to end."""
    until = time.monotonic() + 1.0
    while True:
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marker in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


@pytest.mark.timeout(120)
def test_demo_succeeds_and_leaves_nothing(demo: RunningDemo) -> None:
    assert demo.wait() == 0, demo.output.decode()
    assert b" NO " not in demo.output
    assert demo.left_over() == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        # Interrupt while filesystems are made, while the blob service starts, and around the window.
        (signal.SIGINT, b"=== Disks ==="),
        (signal.SIGINT, b"=== Blob service ==="),
        (signal.SIGINT, b"$ vmsnapshot snapshot"),
        (signal.SIGTERM, b"=== Snapshot ==="),
    ],
)
def test_interrupted_demo_leaves_nothing(demo: RunningDemo, number: signal.Signals, moment: bytes) -> None:
    demo.read_until(moment)
    demo.signal_as_terminal(number)
    assert demo.wait() == 128 + number, demo.output.decode()
    # The demo prints no traceback. Python may print one if the command is interrupted as it starts.
    assert b"tests/demo" not in demo.output
    assert demo.left_over() == []


def test_signal_outranks_the_failure_that_it_caused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    interruptions = Interruptions()
    with pytest.raises(InterruptedBySignalError) as caught, interruptions.held():
        interruptions._note(signal.SIGINT, None)
        raise RuntimeError("the program that was being started is gone")
    assert caught.value.number == signal.SIGINT
