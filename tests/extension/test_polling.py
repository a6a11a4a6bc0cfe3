"""The polling service does the restore points that the host requests, with real filesystems in a sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ArmRescue
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.freezing import frozen, is_frozen
from tests.support.host_service import NEVER_MS, Answer, HostService, Usual, json_answer
from tests.support.isolation import AZURE_CONFIGURATION, BACKUP_CONFIGURATION, Sandbox
from tests.support.wire_server import ADDRESS

BASE = Path("/var/lib/waagent/Publisher.VMSnapshotLinux-1.0.0.0")
LOG_FOLDER = Path("/var/log/azure/Publisher.VMSnapshotLinux")
POLL = (sys.executable, "-m", "vmsnapshot.handler", "poll")

START, PUBLISH = "startsnapshot", "publishsnapshot"
SNAPSHOT_ID = "8f0c1a52-7b1e-4d0c-9a55-0d6f2c9be411"
SIGNATURE = "c2VjcmV0"
REQUEST = {
    "snapshotId": SNAPSHOT_ID,
    "luns": [0],
    "extensionSettings": {"protected": {"statusBlobSasUri": f"https://a.example/b?sig={SIGNATURE}"}},
}
CONSISTENT = {"snapshotId": SNAPSHOT_ID, "errMsg": ""}

# Holds the lock of backups until its standard input ends.
HOLD_LOCK = """
import sys
from vmsnapshot.handler.freeze.lock import SafeFreezeLock
with SafeFreezeLock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def host() -> Iterator[HostService]:
    with HostService() as service:
        service.script("checkforsnapshot", json_answer(REQUEST), Answer(404))
        yield service


@pytest.fixture
def disk(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    disk = scratch.make_on_loop("disk")
    rescue([disk.mount_point], after_seconds=20.0)
    return disk


@pytest.fixture
def sandbox(disk: ScratchFilesystem, host: HostService) -> Iterator[Sandbox]:
    with Sandbox([disk]) as sandbox:
        prepare(sandbox, host)
        yield sandbox


@contextlib.contextmanager
def held_lock(sandbox: Sandbox) -> Iterator[None]:
    """Holds the lock of a backup, in a process of the sandbox."""
    backup = sandbox.popen([sys.executable, "-c", HOLD_LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert backup.stdin is not None
    assert backup.stdout is not None
    with backup.stdin, backup.stdout:
        assert backup.stdout.readline() == b"locked\n"
        yield


def prepare(sandbox: Sandbox, host: HostService) -> None:
    """Makes the directories of the extension and the configuration that names the host."""
    sandbox.forward(80, host=ADDRESS, outside_port=host.port)
    for directory in (BASE, LOG_FOLDER):
        sandbox.path(directory).mkdir(parents=True)
    folders = {
        "logFolder": str(LOG_FOLDER),
        "configFolder": str(BASE / "config"),
        "statusFolder": str(BASE / "status"),
    }
    document = [{"name": "x", "version": 1.0, "handlerEnvironment": folders}]
    sandbox.path(BASE / "HandlerEnvironment.json").write_text(json.dumps(document))


def start_service(sandbox: Sandbox) -> subprocess.Popen[bytes]:
    return sandbox.popen(POLL, directory=BASE)


def process_of_service(sandbox: Sandbox) -> int:
    """Returns the id of the service's process, which is not the only one in the sandbox."""
    (pid,) = (
        pid
        for pid in sandbox.process_ids()
        if b"vmsnapshot.handler\0poll" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return pid


def tell_to_end(sandbox: Sandbox) -> None:
    """Sends SIGTERM to the service, as a service manager does."""
    os.kill(process_of_service(sandbox), signal.SIGTERM)


def end_service(sandbox: Sandbox, service: subprocess.Popen[bytes]) -> None:
    tell_to_end(sandbox)
    assert service.wait(timeout=10.0) == 0


def log_of(sandbox: Sandbox) -> str:
    return sandbox.path(LOG_FOLDER / "host_based_extension.log").read_text()


def operations(host: HostService) -> list[str]:
    return [request.operation for request in host.requests()]


def wait_until_frozen(path: Path, limit_seconds: float = 5.0) -> None:
    until = time.monotonic() + limit_seconds
    while not is_frozen(path, patience_seconds=0.05):
        assert time.monotonic() < until


def told(host: HostService, operation: str) -> Any:
    (request,) = host.wait_for(operation)
    return request.json


def error_told(host: HostService, operation: str) -> str:
    """Returns the error code that was sent to the host. Its two messages must be equal and not empty."""
    document = told(host, operation)
    assert document["snapshotId"] == SNAPSHOT_ID
    assert document["errMsg"] == document["error"]["message"] != ""
    return str(document["error"]["code"])


def test_the_host_snapshots_frozen_filesystems_and_gets_the_result_after_the_thaw(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    host.script(START, Usual(after_ms=1000.0))
    service = start_service(sandbox)
    (start,) = host.wait_for(START)
    wait_until_frozen(disk.mount_point)
    assert host.requests(PUBLISH) == []
    (publish,) = host.wait_for(PUBLISH)
    assert not is_frozen(disk.mount_point)
    end_service(sandbox, service)

    assert operations(host) == ["checkforsnapshot", START, PUBLISH]
    assert start.json == publish.json == CONSISTENT
    assert start.method == publish.method == "POST"
    assert start.header("Content-Type") == "application/json; charset=utf-8"
    assert publish.header("Content-Type") == "application/json"
    assert start.query == {"comp": "xdisksvc", "type": START}
    log = log_of(sandbox)
    assert f"`{SNAPSHOT_ID}`: consistent" in log
    assert f"`{disk.mount_point}`" in log
    assert SIGNATURE not in log


def test_a_request_with_nothing_to_freeze_succeeds(root: None, host: HostService) -> None:  # noqa: ARG001
    with Sandbox() as sandbox:
        prepare(sandbox, host)
        service = start_service(sandbox)
        assert told(host, START) == CONSISTENT
        assert told(host, PUBLISH) == CONSISTENT
        end_service(sandbox, service)


def test_a_freeze_of_another_program_is_reported_with_both_calls_and_left_alone(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    with frozen(disk.mount_point):
        service = start_service(sandbox)
        assert error_told(host, START) == "INCOMPLETE_FREEZE"
        assert error_told(host, PUBLISH) == "INCOMPLETE_FREEZE"
        assert is_frozen(disk.mount_point)
    end_service(sandbox, service)
    assert operations(host) == ["checkforsnapshot", START, PUBLISH]


def test_a_refusal_of_the_host_is_published_with_its_status(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    host.script(START, Answer(500))
    service = start_service(sandbox)
    assert told(host, START) == CONSISTENT
    assert error_told(host, PUBLISH) == "STARTSNAP_UNEXPECTED_STATUS_500"
    assert not is_frozen(disk.mount_point)
    end_service(sandbox, service)


def test_a_missing_answer_of_the_host_is_published_after_the_thaw(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    sandbox.path(AZURE_CONFIGURATION).write_text(BACKUP_CONFIGURATION + "timeout = 1\n")
    host.script(START, Answer(after_ms=NEVER_MS))
    service = start_service(sandbox)
    assert error_told(host, PUBLISH) == "STARTSNAP_HTTP_ERR"
    assert not is_frozen(disk.mount_point)
    assert len(host.requests(START)) == 1
    end_service(sandbox, service)


def test_a_service_that_gets_sigterm_in_the_window_thaws_and_publishes_first(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    host.script(START, Usual(after_ms=1000.0))
    service = start_service(sandbox)
    host.wait_for(START)
    tell_to_end(sandbox)
    assert service.wait(timeout=10.0) == 0
    assert not is_frozen(disk.mount_point)
    assert told(host, PUBLISH) == CONSISTENT
    assert "polling ended" in log_of(sandbox)


def test_a_service_waits_for_the_lock_of_a_backup(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    with held_lock(sandbox):
        service = start_service(sandbox)
        host.wait_for("checkforsnapshot")
        with pytest.raises(TimeoutError):
            host.wait_for(START, limit_seconds=1.0)
        assert not is_frozen(disk.mount_point)
    assert told(host, START) == CONSISTENT
    assert told(host, PUBLISH) == CONSISTENT
    end_service(sandbox, service)


def test_a_service_that_gets_sigterm_before_the_freeze_ends_at_once_and_publishes_that(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    with held_lock(sandbox):
        service = start_service(sandbox)
        host.wait_for("checkforsnapshot")
        # Wait for this line: before the service accepts the request, a signal ends it without a result.
        until = time.monotonic() + 10.0
        while SNAPSHOT_ID not in log_of(sandbox):
            assert time.monotonic() < until
            time.sleep(0.01)
        tell_to_end(sandbox)
        assert service.wait(timeout=10.0) == 0
    assert error_told(host, START) == "UNEXPECTED_FREEZE_EXC"
    assert error_told(host, PUBLISH) == "UNEXPECTED_FREEZE_EXC"
    assert not is_frozen(disk.mount_point)


def test_a_service_thaws_what_a_killed_service_and_its_killed_watchdog_left_frozen(
    sandbox: Sandbox, disk: ScratchFilesystem, host: HostService
) -> None:
    host.script(START, Answer(after_ms=NEVER_MS))
    service = start_service(sandbox)
    host.wait_for(START)
    pid = process_of_service(sandbox)
    watchdogs = [other for other in sandbox.process_ids() if other != pid]
    # Stop the watchdog first. Otherwise it would thaw as soon as the service is gone.
    for watchdog in watchdogs:
        os.kill(watchdog, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    service.wait(timeout=5.0)
    for watchdog in watchdogs:
        os.kill(watchdog, signal.SIGKILL)
    assert is_frozen(disk.mount_point)

    service = start_service(sandbox)
    host.wait_for("checkforsnapshot", 2)
    assert not is_frozen(disk.mount_point)
    assert f"thawed `{disk.mount_point}`" in log_of(sandbox)
    end_service(sandbox, service)
