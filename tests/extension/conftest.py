"""A VM for the tests of the extension: two disks, a host, blobs. The package is unpacked once per session.

All tests of a module share a VM, because making one takes a second. Each uses its own sequence
number.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.extension import NAME, VERSION, Extension, built_package, unpack
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems, scratch_directory
from tests.support.host_service import HostService
from tests.support.isolation import Sandbox
from tests.support.protected_settings import object_str
from tests.support.rescue import RescueThaw

HOST = "168.63.129.16"
V2 = "microsoft.compute/virtualmachines"
OTHER_VM = "{00000000-0000-4000-8000-000000000001}"
TASK = "9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22"
RESCUE_AFTER_SECONDS = 60.0

_IMPORT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "import vmsnapshot.handler.__main__, vmsnapshot.handler.worker, azure.storage.blob.aio"
)


class Vm:
    """A VM with the unpacked extension, and the services to which it connects."""

    def __init__(
        self, extension: Extension, service: HostService, filesystems: list[ScratchFilesystem]
    ) -> None:
        self.extension = extension
        self.service = service
        self.filesystems = filesystems
        self._numbers = itertools.count(1)

    def new_number(self) -> int:
        """Returns a sequence number that was not used before."""
        return next(self._numbers)

    def job(self, number: int, *, disks: int = 2, mode: str | None = None, **changes: Any) -> Job:
        """Returns settings as Azure Backup sends them, and makes the blobs as they are before a job."""
        names = [f"{number}-os.vhd", *(f"{number}-data{lun}.vhd" for lun in range(disks - 1))]
        for name in names:
            self.service.create_page_blob(name)
        status, logs = f"{number}-status", f"{number}-logs"
        self.service.create_block_blob(status)
        self.service.create_block_blob(logs)
        return Job(self, number, names, status, logs, mode, changes)


class Job:
    """The settings of one job, and where its result is found."""

    def __init__(
        self,
        vm: Vm,
        number: int,
        disks: list[str],
        status: str,
        logs: str,
        mode: str | None,
        changes: dict[str, Any],
    ) -> None:
        self.vm = vm
        self.number = number
        self.disks = disks
        self.status_blob = status
        self.logs_blob = logs
        uri = vm.service.uri
        self.included_disks: dict[str, Any] = {
            "isAnyDiskExcluded": False,
            "dataDiskLunList": list(range(len(disks) - 1)),
            "isOSDiskIncluded": True,
        }
        self.custom: dict[str, Any] = {"isManagedVm": True, "backupTaskId": "BT-1"}
        if mode is not None:
            self.custom["takeSnapshotFrom"] = mode
        self.object: dict[str, Any] = {
            "backupMetadata": [{"Key": "RecoveryPointId", "Value": "123"}],
            "snapshotTaskToken": "TT",
            "includedDisks": self.included_disks,
        }
        self.public: dict[str, Any] = {
            "commandToExecute": "snapshot",
            "taskId": f"{TASK}_{number}",
            "locale": "en-us",
            "commandStartTimeUTCTicks": ticks_ago(minutes=5),
            "vmType": V2,
        }
        self.protected: dict[str, Any] = {
            "objectStr": object_str({"blobSASUri": [uri(name) for name in disks]}),
            "logsBlobUri": uri(logs),
            "statusBlobUri": uri(status),
        }
        self.public.update(changes)
        self.omitted: set[str] = set()
        """Public settings to omit."""

    def enable(self, **environment: str) -> None:
        """Runs enable. The worker continues after that."""
        finished = self.vm.extension.enable(self.number, self.settings(), self.protected, **environment)
        assert (finished.status, finished.output, finished.errors) == (0, "", "")

    def settings(self) -> dict[str, Any]:
        """Returns the public settings, with the test's changes to their parts."""
        parts = {"objectStr": object_str(self.object), "customSettings": json.dumps(self.custom)}
        settings = {**parts, **self.public}
        return {name: value for name, value in settings.items() if name not in self.omitted}

    def run(self, **environment: str) -> dict[str, Any]:
        """Runs the job to its end, and returns the report in the status blob."""
        self.enable(**environment)
        self.vm.extension.finish()
        return self.blob_report()

    def blob_report(self) -> dict[str, Any]:
        """Returns the report in the status blob."""
        report: dict[str, Any] = json.loads(self.vm.service.content(self.status_blob))[0]["status"]
        return report


def ticks_ago(*, minutes: float) -> str:
    """Returns the .NET ticks of the instant ``minutes`` ago."""
    return ticks_of(time.time() - minutes * 60)


def ticks_of(seconds: float) -> str:
    """Returns the .NET ticks of an instant of the system's clock."""
    return str(int(seconds * 10_000_000) + 621_355_968_000_000_000)


def final(report: dict[str, Any]) -> tuple[str, str, int]:
    """Returns the fields by which Azure Backup decides."""
    return report["status"], report["code"], report["vmHealthInfo"]["vmHealthStatusCode"]


def message(report: dict[str, Any]) -> str:
    """Returns the report's message."""
    text: str = json.loads(report["formattedMessage"]["message"])["messageStr"]
    return text


def cause(report: dict[str, Any]) -> str:
    """Returns why the job failed, in the report's words for people."""
    text: str = json.loads(report["formattedMessage"]["message"])["jobMessage"]
    return text


def telemetry(report: dict[str, Any]) -> dict[str, str]:
    """Returns the report's telemetry."""
    return {pair["Key"]: pair["Value"] for pair in report["telemetryData"]}


def worker_of(vm: Vm) -> int:
    """Returns the process id of the worker, as it is outside of the sandbox."""
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        for pid in workers_of(vm):
            return pid
    raise AssertionError("there is no worker")


def workers_of(vm: Vm, verb: bytes = b"worker") -> list[int]:
    """Returns the process ids of all processes that do what `verb` says."""
    found = []
    for pid in vm.extension.sandbox.process_ids():
        with contextlib.suppress(FileNotFoundError):
            if verb in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def host_item(is_successful: object, **more: object) -> dict[str, Any]:
    """Returns a disk's entry in the host's answer."""
    uri = "https://h/b?snapshot=2025-05-14T02:10:07.4821190Z"
    return {
        "isSuccessful": is_successful,
        "snapshotUri": uri if str(is_successful).lower() == "true" else None,
        "errorMessage": None,
        "statusCode": 200,
        **more,
    }


@pytest.fixture(scope="session")
def unpacked_extension(root: None) -> Iterator[Path]:  # noqa: ARG001 (requested for its effect)
    """Unpacks the package as the agent does, and makes the bytecode that its install makes."""
    require(any(Path("dist").glob("*.zip")), "needs the extension package: run `make extension`")
    with scratch_directory() as directory:
        base_directory = directory / "waagent" / f"{NAME}-{VERSION}"
        unpack(built_package(), base_directory)
        command = [sys.executable, "-I", "-S", "-c", _IMPORT, str(base_directory / "lib")]
        subprocess.run(command, check=True, timeout=60)
        yield base_directory


@pytest.fixture(scope="module")
def machine(unpacked_extension: Path) -> Iterator[Vm]:
    """Makes the VM for a module."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        filesystems = stack.enter_context(ScratchFilesystems(directory))
        disks = [filesystems.make_on_loop("root", "ext4"), filesystems.make_on_loop("data", "xfs")]
        service = stack.enter_context(HostService())
        sandbox = stack.enter_context(Sandbox(disks))
        sandbox.forward(80, host=HOST, outside_port=service.port)
        sandbox.forward(service.port)
        yield Vm(Extension(sandbox, unpacked_extension), service, disks)


@pytest.fixture
def vm(machine: Vm) -> Iterator[Vm]:
    """Resets the module's VM. Afterwards nothing may be frozen or running."""
    machine.extension.configure()
    machine.service.reset()
    paths = [filesystem.mount_point for filesystem in machine.filesystems]
    with RescueThaw(paths, RESCUE_AFTER_SECONDS) as rescue:
        yield machine
        machine.extension.finish()
        thawed = rescue.cancel()
    assert not thawed, f"the rescue had to thaw {thawed}"
