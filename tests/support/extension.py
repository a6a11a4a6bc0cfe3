"""The extension package as the agent has unpacked it, run in a sandbox as the agent runs it."""

from __future__ import annotations

import json
import subprocess
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.command import Finished
from tests.support.filesystems import REPOSITORY
from tests.support.isolation import AZURE_CONFIGURATION, BACKUP_CONFIGURATION, Sandbox
from tests.support.protected_settings import key_pair, settings_file_text

NAME = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"
VERSION = "1.0.0.1"
# How long a test waits for a worker. Each step of a worker has its own, shorter limit.
WORKER_LIMIT_SECONDS = 45.0
LOG_FOLDER = Path("/var/log/azure") / NAME


def built_package() -> Path:
    """Returns the zip that `make extension` has built."""
    packages = sorted(
        (REPOSITORY / "dist").glob("VMSnapshotLinux-*.zip"), key=lambda path: path.stat().st_mtime
    )
    if not packages:
        raise FileNotFoundError("there is no extension package: run `make extension`")
    return packages[-1]


def unpack(package: Path, base_directory: Path) -> None:
    """Unpacks as the agent does: without modes, then with u+x on every file."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(base_directory)
    for path in base_directory.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o100)


class Extension:
    """One version of the extension in a sandbox, with its settings, status and logs.

    ``base_directory`` is the unpacked package. It has the same path in the sandbox, and what is
    written there stays in the sandbox.
    """

    def __init__(self, sandbox: Sandbox, base_directory: Path) -> None:
        self.sandbox = sandbox
        self.base_directory = base_directory
        inside = sandbox.path(base_directory)
        for folder in (inside / "config", inside / "status", sandbox.path(LOG_FOLDER / "events")):
            folder.mkdir(mode=0o700, parents=True)
        environment = {
            "logFolder": str(LOG_FOLDER),
            "configFolder": str(base_directory / "config"),
            "statusFolder": str(base_directory / "status"),
            "heartbeatFile": str(base_directory / "heartbeat.log"),
            "eventsFolder": str(LOG_FOLDER / "events"),
        }
        document = [{"name": NAME, "version": 1.0, "handlerEnvironment": environment}]
        (inside / "HandlerEnvironment.json").write_text(json.dumps(document))
        key_pair().write(sandbox.path(base_directory.parent))
        self.be("{3f0c1a52-7b1e-4d0c-9a55-0d6f2c9be411}")

    def be(self, role_guid: str) -> None:
        """Gives the VM this identity."""
        text = f'<HostingEnvironmentConfig><Role guid="{role_guid}" name="x" /></HostingEnvironmentConfig>'
        path = self.base_directory.parent / "HostingEnvironmentConfig.xml"
        self.sandbox.path(path).write_text(text)

    def configure(self, **options: object) -> None:
        """Writes vmbackup.conf with these options, and with ``/`` as a skipped mount."""
        lines = "".join(f"{name} = {value}\n" for name, value in options.items())
        self.sandbox.path(AZURE_CONFIGURATION).write_text(BACKUP_CONFIGURATION + lines)

    def write_settings(self, number: int, text: str) -> None:
        """Writes a settings file with exactly this content."""
        self.sandbox.path(self.base_directory / f"config/{number}.settings").write_text(text)

    def settings_text(self, number: int) -> str:
        """Returns the content of a settings file."""
        return self.sandbox.path(self.base_directory / f"config/{number}.settings").read_text()

    def run(self, verb: str, number: int = 0, **environment: str) -> Finished:
        """Runs a command to its end."""
        return self.sandbox.run(
            self.base_directory / "bin/handler",
            verb,
            directory=self.base_directory,
            environment={**self._environment(number), **environment},
            limit_seconds=60.0,
        )

    def popen(self, verb: str, number: int) -> subprocess.Popen[bytes]:
        """Starts a command. Wait for it with a limit."""
        return self.sandbox.popen(
            [self.base_directory / "bin/handler", verb],
            directory=self.base_directory,
            environment=self._environment(number),
            stdin=subprocess.DEVNULL,
        )

    def enable(
        self,
        number: int,
        public: Mapping[str, Any] | None,
        protected: Mapping[str, Any] | None = None,
        *,
        cipher: str = "des3",
        **environment: str,
    ) -> Finished:
        """Writes the settings and runs enable. The worker continues after that."""
        self.write_settings(number, settings_file_text(public, protected, cipher=cipher))
        return self.run("enable", number, **environment)

    def finish(self) -> None:
        """Waits until the worker has ended."""
        assert self.sandbox.wait_until_empty(WORKER_LIMIT_SECONDS), "the worker did not end"

    def status_file(self, number: int) -> Path:
        """Returns the path of the status file, outside of the sandbox."""
        return self.sandbox.path(self.base_directory / f"status/{number}.status")

    def status(self, number: int) -> dict[str, Any]:
        """Returns the status that the agent reads."""
        status: dict[str, Any] = json.loads(self.status_file(number).read_text())[0]["status"]
        return status

    def report(self, number: int) -> dict[str, Any]:
        """Returns the report that the status file embeds."""
        report: dict[str, Any] = json.loads(self.status(number)["substatus"][0]["name"])[0]["status"]
        return report

    def wait_for_code(self, number: int, code: str, limit_seconds: float = 20.0) -> None:
        """Waits until the status has this code."""
        until = time.monotonic() + limit_seconds
        while not (self.status_file(number).exists() and self.status(number)["code"] == code):
            assert time.monotonic() < until, f"the status did not become {code}"
            time.sleep(0.005)

    def log(self) -> str:
        """Returns the handler's log."""
        path = self.sandbox.path(LOG_FOLDER / "extension.log")
        return path.read_text() if path.exists() else ""

    def _environment(self, number: int) -> dict[str, str]:
        return {
            "ConfigSequenceNumber": str(number),
            "AZURE_GUEST_AGENT_EXTENSION_PATH": str(self.base_directory),
        }
