"""An Azure VM: a sandbox with disks, Azure's host, a blob service, and the real agent."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobClient

from tests.agent.agent import EXTENSION_LOG, Agent
from tests.agent.jobs import backup_job
from tests.support.azurite import CONTAINER, Azurite
from tests.support.filesystems import ScratchFilesystem
from tests.support.freezing import is_frozen
from tests.support.isolation import Sandbox
from tests.support.wire_server import Report, Requested, RequestedSettings, WireServer

TRANSITIONING = "4"
SUCCESS = "1"
ERROR = "2"

_STATE_FILES = {
    "mrseq",
    "task_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C",
    "machine_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C",
}


@dataclass(frozen=True)
class JobStatus:
    """The agent's report of a job."""

    sequence_number: int
    status: str
    code: str
    report: Mapping[str, Any]
    """Our report in the substatus, which Azure Backup reads."""

    @property
    def telemetry(self) -> Mapping[str, str]:
        """Returns ``telemetryData`` by its keys."""
        return {pair["Key"]: pair["Value"] for pair in self.report["status"]["telemetryData"]}

    @property
    def snapshots(self) -> list[Mapping[str, Any]]:
        """Returns ``snapshotInfo``."""
        return list(self.report["status"]["snapshotInfo"])


@dataclass(frozen=True)
class Vm:
    """A VM with everything that a test uses."""

    name: str
    sandbox: Sandbox
    wire_server: WireServer
    agent: Agent
    azurite: Azurite
    disks: tuple[ScratchFilesystem, ...]
    version: str
    """The version of the extension that was built."""

    @property
    def blobs(self) -> tuple[str, ...]:
        """Returns the names of the disks' blobs."""
        return tuple(f"{self.name}-{number}" for number in range(len(self.disks)))

    def job(self, sequence_number: int, **options: Any) -> RequestedSettings:
        """Returns the settings of a job that snapshots the VM's disks."""
        uris = [self.azurite.sas_uri(name) for name in self.blobs]
        return backup_job(sequence_number, uris, **options)

    def ask(self, settings: RequestedSettings, *, version: str | None = None, state: str = "enabled") -> None:
        """Makes a goal state with this job."""
        self.wire_server.request(Requested(version or self.version, state, settings))

    def snapshot_counts(self) -> list[int]:
        """Returns the number of snapshots of each disk's blob."""
        return [len(self.azurite.snapshots(name)) for name in self.blobs]

    def frozen_disks(self) -> list[bool]:
        """Returns for each disk whether it is frozen."""
        return [is_frozen(disk.mount_point) for disk in self.disks]

    def wait_until_done(self, *, limit_seconds: float = 30.0) -> JobStatus:
        """Does rounds of the agent until it reports a finished job."""
        until = time.monotonic() + limit_seconds
        while (status := job_status(self.agent.round())).code == TRANSITIONING:
            assert time.monotonic() < until, f"the job is not over: {self.log()}"
            time.sleep(0.05)
        self.wait_until_idle()
        return status

    def wait_until_idle(self) -> None:
        """Waits until the agent is the only process of the VM."""
        assert self.sandbox.wait_until_empty(limit_seconds=10.0, but_for=1), "a worker did not end"

    def agent_is_alone(self) -> bool:
        """Returns whether the agent is the only process of the VM."""
        return self.sandbox.wait_until_empty(limit_seconds=0.0, but_for=1)

    def worker_pid(self) -> int:
        """Returns the id outside of the worker."""
        pids = self.sandbox.process_ids()
        (pid,) = (pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0worker\0"))
        return pid

    def settings(self, sequence_number: int) -> Mapping[str, Any]:
        """Returns the handler's settings of a job as they are on disk."""
        path = self.agent.directory(self.version) / f"config/{sequence_number}.settings"
        settings = json.loads(path.read_text())["runtimeSettings"][0]["handlerSettings"]
        assert isinstance(settings, dict)
        return settings

    def files_with(self, text: str) -> list[str]:
        """Returns those files of the agent and the handler that contain a text."""
        finished = self.sandbox.run(
            "grep", "-rlF", "--", text, "/var/lib/waagent", "/var/log", "/etc/azure", "/run"
        )
        assert finished.status in (0, 1), finished.errors
        return finished.output.splitlines()

    def remembered(self, version: str) -> dict[str, str]:
        """Returns the handler's files about jobs and the machine, by name."""
        directory = self.agent.directory(version)
        return {path.name: path.read_text() for path in directory.iterdir() if path.name in _STATE_FILES}

    def log(self) -> str:
        """Returns the handler's log."""
        return self.sandbox.path(EXTENSION_LOG / "extension.log").read_text()

    def create_blobs(self) -> None:
        """Makes the disks' blobs."""
        for name in self.blobs:
            self.azurite.create_page_blob(name)

    def create_status_blob(self) -> str:
        """Makes an empty block blob, as the service does before a job; returns its URI."""
        self._status_blob().upload_blob(b"")
        return self.azurite.sas_uri(f"{self.name}-status")

    def read_status_blob(self) -> Mapping[str, Any]:
        """Returns the report in the status blob."""
        (report,) = json.loads(self._status_blob().download_blob().readall())
        assert isinstance(report, dict)
        return report

    def _status_blob(self) -> BlobClient:
        return self.azurite.service.get_blob_client(CONTAINER, f"{self.name}-status")


def job_status(report: Report) -> JobStatus:
    """Extracts the job's status from the agent's report."""
    handler = report.handler
    assert handler is not None, "the agent does not report our handler"
    assert handler["status"] == "Ready", handler
    settings = handler["runtimeSettingsStatus"]
    status = settings["settingsStatus"]["status"]
    assert "substatus" in status, status
    (document,) = json.loads(status["substatus"][0]["name"])
    return JobStatus(settings["sequenceNumber"], status["status"], str(status["code"]), document)


def repacked(package: Path, old: str, new: str, directory: Path) -> Path:
    """Returns the package as another version of it. The version is only in the name."""
    target = directory / package.name.replace(old, new)
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "x") as copy:
        for entry in source.infolist():
            copy.writestr(entry, source.read(entry))
    return target
