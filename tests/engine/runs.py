"""What the tests of killed and stopped runs share: a program that uses the Python API, and outcomes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.engine.conftest import Machine
from tests.support.command import SnapshotRun, read_status, run_of, wait_until_gone
from tests.support.fault_server import Creates, FaultServer, NeverAnswers
from tests.support.filesystems import REPOSITORY


def outcomes(report: Any) -> set[str]:
    """Returns the different outcomes of the filesystems in a report."""
    return {filesystem["outcome"] for filesystem in report["filesystems"]}


def kill(pid: int) -> int:
    """Kills a process of this test by its id. Returns the instant just before."""
    now_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return now_ns


def kill_with_watchdog(run: SnapshotRun) -> str:
    """Kills a run in its window together with its watchdog. Returns the run's id."""
    run_id = run.run_id()
    watchdog_pid: int = run_of(read_status(), run_id)["watchdog_pid"]
    # Stop the run first. Otherwise it would notice the end of its watchdog, and thaw.
    run.send(signal.SIGSTOP)
    wait_until_stopped(run.process.pid)
    kill(watchdog_pid)
    run.send(signal.SIGKILL)
    run.finish()
    wait_until_gone(watchdog_pid)
    return run_id


def wait_until_stopped(pid: int) -> None:
    """Waits until no thread of a process that was sent SIGSTOP runs: the signal stops one after another."""
    until = time.monotonic() + 5.0
    while True:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        if all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats):
            return
        assert time.monotonic() < until, stats
        time.sleep(0.001)


def leave_frozen(mount_point: Path, server: FaultServer) -> str:
    """Freezes a filesystem with a run that is killed together with its watchdog. Returns the run's id."""
    server.script("disk", Creates(after_ms=5000))
    with SnapshotRun([mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        return kill_with_watchdog(run)


def start_program(machine: Machine, program: str) -> subprocess.Popen[bytes]:
    """Starts ``program``, which can call ``prepare()``, and ``told(session)`` to print the watchdog's pid.

    ``prepare`` passes its arguments on.
    """
    machine.server.script("disk", NeverAnswers())
    prologue = f"""
import os, signal, sys, textwrap, vmsnapshot
def prepare(**options):
    plan = vmsnapshot.plan(include={[f"mount={path}" for path in machine.mount_points]!r})
    blobs = [{machine.server.uri("disk")!r}]
    return vmsnapshot.prepare(plan, blobs=blobs, **{{"thaw_timeout": 2.0, "call_timeout": 2.0, **options}})
def told(session):
    (run,) = (run for run in vmsnapshot.status().runs if run.run_id == session.run_id)
    print(run.watchdog_pid, flush=True)
exec(textwrap.dedent({program!r}))
"""
    return subprocess.Popen(
        [sys.executable, "-c", prologue],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def read_line(process: subprocess.Popen[bytes]) -> str:
    """Reads one line of its output. Fails with its standard error if it has ended."""
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        raise AssertionError(process.communicate(timeout=5)[1].decode())
    return line
