"""What the tests of runs in trouble share: a run of the Python API in a process, and what came of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from tests.engine.conftest import Machine
from tests.support.fault_server import NeverAnswers
from tests.support.filesystems import REPOSITORY


def outcomes(report: Any) -> set[str]:
    return {filesystem["outcome"] for filesystem in report["filesystems"]}


def kill(pid: int) -> int:
    """Kills a process of ours by its id; returns the instant just before."""
    now_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return now_ns


def start_program(machine: Machine, program: str) -> subprocess.Popen[bytes]:
    """Runs ``program`` with ``prepare()``, for a run, and ``told(session)``, which tells its watchdog."""
    machine.server.script("disk", NeverAnswers())
    prologue = f"""
import os, signal, sys, textwrap, vmsnapshot
def prepare():
    plan = vmsnapshot.plan(include={[f"mount={path}" for path in machine.mount_points]!r})
    return vmsnapshot.prepare(plan, blobs=[{machine.server.uri("disk")!r}], thaw_timeout=2.0)
def told(session):
    (run,) = (run for run in vmsnapshot.status()["runs"] if run["run_id"] == session.run_id)
    print(run["watchdog_pid"], flush=True)
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
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    if not line:
        raise AssertionError(process.communicate(timeout=5)[1].decode())
    return line
