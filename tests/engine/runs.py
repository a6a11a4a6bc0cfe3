"""What the tests of killed and stopped runs share: a program that uses the Python API, and outcomes."""

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
    """Returns the different outcomes of the filesystems in a report."""
    return {filesystem["outcome"] for filesystem in report["filesystems"]}


def kill(pid: int) -> int:
    """Kills a process of this test by its id. Returns the instant just before."""
    now_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return now_ns


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
