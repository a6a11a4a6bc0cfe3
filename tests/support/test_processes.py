"""Tests that send signals work under a parent that ignores them."""

from __future__ import annotations

import subprocess
import sys

from tests.support.filesystems import REPOSITORY

PROGRAM = """
import signal, subprocess, sys
from tests.support.processes import obey_signals
obey_signals()
subprocess.run(["grep", "SigIgn", "/proc/self/status"], check=True)
"""


def test_children_of_the_tests_obey_signals_that_the_parent_of_the_tests_ignores() -> None:
    ran = subprocess.run(
        ["sh", "-c", 'trap "" INT HUP TERM; exec "$@"', "-", sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    ignored = int(ran.stdout.split()[1], 16)
    # SIGHUP is 1, SIGINT is 2 and SIGTERM is 15.
    assert ignored & (1 << 0 | 1 << 1 | 1 << 14) == 0
