"""Drives the real agent in a sandbox, one round at a time, and reads its files."""

from __future__ import annotations

import re
import select
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support import processes
from tests.support.filesystems import REPOSITORY
from tests.support.isolation import Sandbox
from tests.support.wire_server import EXTENSION, Report, WireServer

PACKAGE = REPOSITORY / ".work/waagent"
LIBRARY = Path("/var/lib/waagent")
EXTENSION_LOG = Path("/var/log/azure") / EXTENSION

# Debian's configuration without the options that would change the machine. The rest are the agent's defaults.
_CONFIGURATION = """\
Extensions.Enabled=y
AutoUpdate.Enabled=n
Logs.Verbose=n
Logs.Console=n
OS.OpensslPath=None
OS.EnableFirewall=n
OS.RootDeviceScsiTimeout=None
ResourceDisk.Format=n
Debug.EnableFastTrack=n
"""

_OUTPUT = "/var/log/agent-output"
_PROGRAM = Path(__file__).with_name("agent_process.py")


class AgentError(Exception):
    """The agent failed or did not answer in time. The message has the end of its log."""


class Agent:
    """The agent of one VM. It runs between `start` and `stop`, and its files remain after that."""

    def __init__(self, sandbox: Sandbox, wire_server: WireServer) -> None:
        self._sandbox = sandbox
        self._wire_server = wire_server
        self._process: subprocess.Popen[bytes] | None = None
        self._reports_before = 0
        sandbox.path("/etc/waagent.conf").write_text(_CONFIGURATION)
        library = sandbox.path(LIBRARY)
        library.mkdir(mode=0o700)

    def start(self) -> None:
        """Starts it. It fetches the goal state at once, and acts on it in its next `round`."""
        with self._sandbox.path(_OUTPUT).open("ab") as output:
            self._process = self._sandbox.popen(
                ["/usr/bin/python3", "-B", "-u", _PROGRAM],
                environment={"PYTHONPATH": str(PACKAGE / "usr/lib/python3/dist-packages")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
            )
        self._wait_for(b"ready\n", limit_seconds=20.0)

    def stop(self) -> None:
        """Stops it, between two rounds."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            if not processes.end(process, limit_seconds=5.0):
                raise AgentError("the agent did not end")

    def round(self, *, limit_seconds: float = 40.0) -> Report:
        """Does one round of its loop: fetches the goal state, acts on a new one, and returns the report."""
        self.begin_round()
        return self.end_round(limit_seconds=limit_seconds)

    def begin_round(self) -> None:
        """Starts a round without waiting for its end."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._reports_before = len(self._wire_server.reports)
        self._process.stdin.write(b"round\n")
        self._process.stdin.flush()

    def end_round(self, *, limit_seconds: float = 40.0) -> Report:
        """Waits for the end of the round. Returns the report of it."""
        self._wait_for(b"done\n", limit_seconds=limit_seconds)
        reports = self._wire_server.reports[self._reports_before :]
        assert len(reports) == 1, f"{len(reports)} reports in one round: {self.log_tail()}"
        return reports[0]

    def directory(self, version: str) -> Path:
        """Returns the extension's directory, as seen from outside."""
        return self._sandbox.path(LIBRARY / f"{EXTENSION}-{version}")

    def versions(self) -> list[str]:
        """Returns the versions that have a directory."""
        found = self._sandbox.path(LIBRARY).glob(f"{EXTENSION}-*")
        return sorted(path.name.rpartition("-")[2] for path in found if path.is_dir())

    def commands(self) -> list[str]:
        """Returns the commands that ran since the VM was made."""
        log = self._sandbox.path(EXTENSION_LOG / "CommandExecution.log").read_text()
        return re.findall(r"Executing command: \S+ (\w+) with environment", log)

    def log_tail(self) -> str:
        """Returns the last lines of the agent's log."""
        path = self._sandbox.path(_OUTPUT)
        return "\n".join(path.read_text(errors="replace").splitlines()[-40:])

    def _wait_for(self, answer: bytes, *, limit_seconds: float) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], limit_seconds)
        if not readable or self._process.stdout.readline() != answer:
            raise AgentError(f"the agent did not answer:\n{self.log_tail()}")

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
