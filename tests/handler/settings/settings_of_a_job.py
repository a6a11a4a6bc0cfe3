"""The settings of an ordinary job."""

from __future__ import annotations

from typing import Any

from tests.support.protected_settings import object_str

SIGNATURE = "c2VjcmV0"
STATUS_URI = f"https://logs.blob.core.windows.net/c/vm1.Status.txt?sv=2014-02-14&sr=b&sig={SIGNATURE}&sp=rw"
LOGS_URI = f"https://logs.blob.core.windows.net/c/vm1.Logs.txt?sv=2014-02-14&sr=b&sig={SIGNATURE}&sp=rw"
OS_URI = f"https://contoso5365.blob.core.windows.net/vhds/os.vhd?sv=2014-02-14&sr=b&sig={SIGNATURE}&sp=rw"
REQUEST: dict[str, Any] = {"backupMetadata": [{"Key": "RecoveryPointId", "Value": "123"}]}
PROTECTED: dict[str, Any] = {
    "objectStr": object_str({"blobSASUri": [OS_URI]}),
    "logsBlobUri": LOGS_URI,
    "statusBlobUri": STATUS_URI,
}


def public(**changes: Any) -> dict[str, Any]:
    """Public settings of an ordinary job, with some keys changed."""
    return {
        "commandToExecute": "snapshot",
        "taskId": "task_1",
        "commandStartTimeUTCTicks": "638827848000000000",
        "vmType": "microsoft.compute/virtualmachines",
        "objectStr": object_str(REQUEST),
        **changes,
    }
