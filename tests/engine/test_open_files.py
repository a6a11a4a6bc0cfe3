"""A run whose process may not open enough files says so, with the system's words and the limit to raise."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import StartFaultServer
from tests.support.filesystems import REPOSITORY

PROGRAM = """
import os, resource, sys, vmsnapshot
plan = vmsnapshot.plan(exclude=["/**"])
is_open = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (is_open + int(sys.argv[2]), 4096))
try:
    vmsnapshot.prepare(plan, [sys.argv[1]]).run()
except vmsnapshot.PrepareError as error:
    print(error.code, error, error.hint, sep="|")
"""


def test_an_error_because_of_too_many_open_files_names_the_limit_to_raise(
    fault_server: StartFaultServer,
) -> None:
    server = fault_server()
    codes = set()
    for more in range(40):
        command = [sys.executable, "-c", PROGRAM, server.uri("disk"), str(more)]
        finished = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=True
        )
        if not finished.stdout:
            break
        code, message, hint = finished.stdout.strip().split("|")
        assert message.endswith("too many open files"), message
        assert "ulimit -n" in hint, hint
        codes.add(code)
    assert {"connect-failed", "no-watchdog", "no-resources"} <= codes, codes
