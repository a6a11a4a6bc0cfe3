"""The second part of the demo: the same disks and blobs with the extension, run as the agent runs it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.azurite import CONTAINER, Azurite
from tests.support.certificates import Certificates
from tests.support.extension import Extension
from tests.support.isolation import Sandbox
from tests.support.protected_settings import object_str

HOST = "168.63.129.16"
NUMBER = 7
STATUS_BLOB, LOG_BLOB = "status", "logs"
TASK_ID = "9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22_1"
LIMIT_SECONDS = 60.0


def run_job(
    extension: Extension, azurite: Azurite, certificates: Certificates, disks: Sequence[str]
) -> dict[str, Any]:
    """Enables the extension with the settings of one backup job. Returns the report in the status blob."""
    for name in (STATUS_BLOB, LOG_BLOB):
        azurite.service.get_blob_client(CONTAINER, name).upload_blob(b"", overwrite=True)
    public = {
        "commandToExecute": "snapshot",
        "taskId": TASK_ID,
        "locale": "en-us",
        "commandStartTimeUTCTicks": str(time.time_ns() // 100 + 621_355_968_000_000_000),
        "vmType": "microsoft.compute/virtualmachines",
        "objectStr": object_str(
            {
                "backupMetadata": [{"Key": "RecoveryPointId", "Value": "demo"}],
                "snapshotTaskToken": "token",
                "includedDisks": {"dataDiskLunList": [0, 1], "isOSDiskIncluded": True},
            }
        ),
        "customSettings": json.dumps({"takeSnapshotFrom": "firstHostThenGuest", "isManagedVm": False}),
    }
    protected = {
        "objectStr": object_str({"blobSASUri": [azurite.sas_uri(disk) for disk in disks]}),
        "statusBlobUri": azurite.sas_uri(STATUS_BLOB),
        "logsBlobUri": azurite.sas_uri(LOG_BLOB),
    }
    print(f"  install                 exit status {extension.run('install').status}")
    # The demo's own authority has signed the emulator's certificate.
    trust = {"SSL_CERT_FILE": str(certificates.ca_file)}
    begun = time.monotonic()
    finished = extension.enable(NUMBER, public, protected, **trust)
    enabled = time.monotonic()
    print(f"  enable                  exit status {finished.status}, after {enabled - begun:.2f} s")
    print(f"  {NUMBER}.status                {_line(extension.status(NUMBER))}")
    while extension.status(NUMBER)["code"] == "4":
        if time.monotonic() - begun > LIMIT_SECONDS:
            raise TimeoutError("the job has no final status")
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    print(f"  {NUMBER}.status                {_line(extension.status(NUMBER))}, after {seconds:.2f} s")
    assert extension.sandbox.wait_until_empty(LIMIT_SECONDS)
    content = azurite.service.get_blob_client(CONTAINER, STATUS_BLOB).download_blob().readall()
    report: dict[str, Any] = json.loads(content)[0]["status"]
    print(f"  status blob             {_line(report)}")
    for item in report["snapshotInfo"] or []:
        print(f"    {item['snapshotUri'] or item['errorMessage']}")
    lines = [line for line in extension.log().splitlines() if "window" in line and "run " in line]
    print(f"  log                     {lines[-1].partition(']')[2] if lines else 'no window'}")
    return report


def prepare(sandbox: Sandbox, base_directory: Path, host_port: int, azurite: Azurite) -> Extension:
    """Makes host and blobs reachable in the sandbox, and makes the extension's folders as the agent does."""
    sandbox.forward(80, host=HOST, outside_port=host_port)
    sandbox.forward(int(azurite.endpoint.rpartition(":")[2]))
    return Extension(sandbox, base_directory)


def _line(status: dict[str, Any]) -> str:
    message = json.loads(status["formattedMessage"]["message"])["messageStr"]
    return f"{status['status']}, code {status['code']}, {message or 'no message'}".rstrip(", ")
