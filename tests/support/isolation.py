"""A sandbox in which the extension's handler runs as on an Azure VM.

The handler freezes whatever the machine has mounted, writes to ``/etc/azure`` and
``/var/lib/waagent``, and talks to 168.63.129.16. A `Sandbox` has its own namespaces (mount,
network, processes), where that is safe:

* Its root is an overlay over the machine's files. Writes stay in memory and vanish with the sandbox.
* The only filesystems on block devices in it are those that the test made and names. The machine's ``/`` is
  only below the overlay, where FIFREEZE cannot reach it. Mounts of other processes are not visible.
* Its network is a loopback device that also has the addresses of Azure's host and a private one, so that they
  and port 80 work.
* Before anything else runs in it, the product's plan inside, with nothing excluded, must name exactly the
  test's filesystems. Otherwise `SandboxError` is raised.

Servers of the tests stay outside. `Sandbox.listen` gives them a socket that listens inside, and
`Sandbox.forward` does that for a server with its own port (Azurite). `Sandbox.path` leads to files
inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import processes
from tests.support.command import COMMAND, Finished
from tests.support.filesystems import REPOSITORY, ScratchFilesystem
from tests.support.mounts import assert_not_root, read_mounts

# The environment of a plain system service.
SERVICE_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

# The sandbox has no disk at its root. The configuration skips `/` as a second safeguard.
BACKUP_CONFIGURATION = "[SnapshotThread]\nMountsToSkip = /\n"
AZURE_CONFIGURATION = Path("/etc/azure/vmbackup.conf")

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation=private")
_PYTHON = (sys.executable, "-I", "-S", str(Path(__file__).with_name("isolation_process.py")))


class SandboxError(Exception):
    """A sandbox could not be made, a freeze in it would not be safe, or a process was left in it."""


class Sandbox:
    """Namespaces for one test, until `close`. Use it as a context manager, and from one thread only.

    Only ``filesystems`` can be frozen in it. Make them and arm a rescue for them before, and take
    them down afterwards. They have the same mount points inside.
    """

    def __init__(self, filesystems: Sequence[ScratchFilesystem] = ()) -> None:
        for filesystem in filesystems:
            assert_not_root(filesystem.mount_point)
        self.filesystems = tuple(filesystems)
        self._started: list[subprocess.Popen[bytes]] = []
        self._relays: list[subprocess.Popen[bytes]] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(20.0)
        with theirs:
            self._holder = subprocess.Popen(
                [*_DIES_WITH_US, *_UNSHARE, *_PYTHON, "hold", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            mount_points = [str(filesystem.mount_point) for filesystem in self.filesystems]
            answer = self._ask({"lower": _lower_directories(), "mount_points": mount_points})
            self.holder_pid: int = answer["ready"]
            self._namespace = Path(f"/proc/{self.holder_pid}/ns/pid").readlink()
            self._enter = ("nsenter", f"--target={self.holder_pid}", "--mount", "--net", "--pid")
            self.path(AZURE_CONFIGURATION.parent).mkdir()
            self.path(AZURE_CONFIGURATION).write_text(BACKUP_CONFIGURATION)
            self.assert_safe()
        except BaseException:
            self._end()
            raise

    def assert_safe(self) -> None:
        """Raises `SandboxError` unless the product would freeze exactly the test's filesystems.

        Nothing is excluded from that plan, which is made once, before anything else runs inside.
        """
        mounts = read_mounts()
        machine = {mount.device for mount in mounts if mount.mount_point == Path("/")}
        points = [filesystem.mount_point for filesystem in self.filesystems]
        ours = {mount.device for mount in mounts if mount.mount_point in points}
        finished = self.run(COMMAND, "plan", "--json")
        if finished.status != 0:
            raise SandboxError(f"the plan cannot be made in the sandbox: {finished.output}{finished.errors}")
        plan = finished.document
        planned = {entry["device"] for entry in plan["filesystems"]}
        seen = planned | {entry["device"] for entry in plan["skipped"]}
        if planned != ours:
            points_planned = [entry["mount_point"] for entry in plan["filesystems"]]
            raise SandboxError(f"not safe: {points_planned} would be frozen, the test's are {points}")
        if seen & machine:
            raise SandboxError("not safe: the filesystem of the machine's / is mounted in the sandbox")
        if self.path("/").stat().st_dev == Path("/").stat().st_dev:
            raise SandboxError("not safe: the root of the sandbox is the machine's")

    def path(self, inside: str | Path) -> Path:
        """Returns the path, as seen from outside, of a file in the sandbox."""
        return Path(f"/proc/{self.holder_pid}/root") / Path(inside).relative_to("/")

    def written(self) -> dict[str, bytes]:
        """Returns the content of every file that was made or changed inside, by the path inside."""
        found = {}
        for path in self.path("/run").rglob("*"):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(self.path("/run")))] = path.read_bytes()
        return found

    def popen(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: dict[str, str] | None = None,
        directory: str | Path = "/",
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Starts a program inside, as root, with the environment of a system service and ``environment``.

        It returns a process outside, which ends with the program and with its exit status. End it
        with `kill`. Send any other signal to a process of `process_ids`.
        """
        process = subprocess.Popen(
            [*self._enter, *_DIES_WITH_US, "env", f"--chdir={directory}", *map(str, arguments)],
            env={**SERVICE_ENVIRONMENT, **(environment or {})},
            start_new_session=True,
            **options,
        )
        self._started.append(process)
        return process

    def run(
        self,
        *arguments: str | Path,
        environment: dict[str, str] | None = None,
        directory: str | Path = "/",
        standard_input: str = "",
        limit_seconds: float = 20.0,
    ) -> Finished:
        """Runs a program inside to its end. At the limit it kills the program and raises `SandboxError`."""
        process = self.popen(
            arguments,
            environment=environment,
            directory=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = process.communicate(standard_input.encode(), timeout=limit_seconds)
        except BaseException as cause:
            self.kill(process)
            if isinstance(cause, subprocess.TimeoutExpired):
                raise SandboxError(f"{arguments[0]} did not end within {limit_seconds} s") from None
            raise
        return Finished(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kills a program that `popen` started. It is no error if the program has ended."""
        # Kill the program, not nsenter. Otherwise the program would become a child of the machine's init, and
        # these namespaces would exist until init reaps it.
        for pid in self.process_ids():
            with contextlib.suppress(OSError):
                if _stat(Path(f"/proc/{pid}"))[1] == str(process.pid):
                    os.kill(pid, signal.SIGKILL)
        processes.end(process, limit_seconds=2.0)

    def listen(self, host: str, port: int) -> socket.socket:
        """Returns a socket that listens inside, for a server that runs outside. The caller closes it."""
        self._control.send(json.dumps({"host": host, "port": port}).encode())
        message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        if not descriptors:
            raise SandboxError(f"could not listen on {host}:{port}: {json.loads(message)['error']}")
        return socket.socket(fileno=descriptors[0])

    def forward(self, port: int, *, host: str = "127.0.0.1", outside_port: int | None = None) -> None:
        """Makes a server on a port of the machine's 127.0.0.1 reachable inside at ``host`` and ``port``."""
        with self.listen(host, port) as listener:
            words = [*_DIES_WITH_US, *_PYTHON, "relay", str(listener.fileno()), str(outside_port or port)]
            relay = subprocess.Popen(
                words, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
            self._relays.append(relay)

    def process_ids(self) -> list[int]:
        """Returns the ids outside of the processes that run inside, without zombies."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_inside = (directory / "ns/pid").readlink() == self._namespace
                if is_inside and int(directory.name) != self.holder_pid and _stat(directory)[0] != "Z":
                    found.append(int(directory.name))
        return sorted(found)

    def wait_until_empty(self, limit_seconds: float, *, but_for: int = 0) -> bool:
        """Waits until at most ``but_for`` processes run inside. Returns whether that happened in time."""
        until = time.monotonic() + limit_seconds
        while len(self.process_ids()) > but_for:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Ends every process inside, and the sandbox, within a time limit.

        Raises `SandboxError` if a program left a process behind, or if a process cannot be ended
        because it hangs on a frozen filesystem.
        """
        for process in self._started:
            self.kill(process)
        for relay in self._relays:
            processes.kill(relay)
        left = [] if self.wait_until_empty(limit_seconds=3.0) else self.process_ids()
        names = ", ".join(_command_line(pid) for pid in left)
        if not self._end():
            raise SandboxError(f"the sandbox cannot end: something in it hangs ({names})")
        if names:
            raise SandboxError(f"left running in the sandbox: {names}")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._control.send(json.dumps(question).encode())
            answer = json.loads(self._control.recv(1 << 16) or b'{"error": "its first process has ended"}')
        except OSError as error:
            raise SandboxError(f"could not make a sandbox: {error}") from None
        if "error" in answer:
            raise SandboxError(f"could not make a sandbox: {answer['error']}")
        assert isinstance(answer, dict)
        return answer

    def _end(self) -> bool:
        """Ends the first process, and with it all others. Returns whether they are gone."""
        self._control.close()
        return processes.end(self._holder, limit_seconds=5.0)


def _lower_directories() -> list[str]:
    """Returns the mount points, outermost first, that hold the files which the tests' programs need."""
    needed = (Path("/"), REPOSITORY, Path(sys.base_prefix).resolve())
    found = {next(path for path in (need, *need.parents) if path.is_mount()) for need in needed}
    return [str(path) for path in sorted(found, key=lambda path: len(path.parts))]


def _stat(process: Path) -> list[str]:
    """Returns the fields that follow a process's name in its stat: its state, its parent."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return f"{pid} {b' '.join(words).decode(errors='replace')}"
    return str(pid)
