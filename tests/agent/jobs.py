"""The settings of backup jobs, as Azure Backup sends them."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Sequence
from typing import Any

from tests.support.wire_server import RequestedSettings


def backup_job(
    sequence_number: int,
    blobs: Sequence[str],
    *,
    task_id: str | None = None,
    mode: str = "firstHostThenGuest",
    status_blob: str | None = None,
    cipher: str = "des3",
) -> RequestedSettings:
    """Returns the settings of a job that snapshots ``blobs``: URIs with a SAS, in the protected part.

    Every sequence number is a new task, unless ``task_id`` is given.
    """
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    ticks = (now - datetime.datetime(1, 1, 1)) // datetime.timedelta(microseconds=1) * 10
    disks = {"isOSDiskIncluded": True, "dataDiskLunList": [0]}
    public = {
        "commandToExecute": "snapshot",
        "taskId": task_id or f"9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22_{sequence_number}",
        "locale": "en-us",
        "commandStartTimeUTCTicks": str(ticks),
        "vmType": "microsoft.compute/virtualmachines",
        "objectStr": _encoded(
            {
                "backupMetadata": [{"Key": "RecoveryPointId", "Value": str(sequence_number)}],
                "snapshotTaskToken": "token",
                "includedDisks": disks,
            }
        ),
        "customSettings": json.dumps(
            {"takeSnapshotFrom": mode, "isManagedVm": True, "backupTaskId": "backup"}
        ),
    }
    protected: dict[str, Any] = {"objectStr": _encoded({"blobSASUri": list(blobs)})}
    if status_blob is not None:
        protected["statusBlobUri"] = status_blob
    return RequestedSettings(sequence_number, public, protected, cipher)


def _encoded(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode("ascii")).decode("ascii")
