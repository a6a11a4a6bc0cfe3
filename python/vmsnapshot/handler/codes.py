"""The numbers that Azure Backup uses for the outcome of a job.

A *run code* is ``status.code``, and an *ext code* is ``vmHealthInfo.vmHealthStatusCode``. Both come from this
table. It has only the codes that this version reports. Chapter 4 of the contract has the others. The names
are those that the service and the portal show (``extErrorCode``, ``StatusCode.<name>``).
"""

from __future__ import annotations

import enum

GREEN = 0
YELLOW = 128
RED = 256


class Code(enum.IntEnum):
    """A code. `shown_as` is its name, and `health_state` is the colour of the VM with this code."""

    APPLICATION_CONSISTENT = 0
    SUCCESS = 1
    ERROR = 2
    ALREADY_PROCESSED = 3
    TRANSITIONING = 4
    PARAMETERS = 11
    FILE_NOT_FOUND = 12
    CERTIFICATE_NOT_FOUND = 16
    INVALID_LUN_LIST = 17
    SNAPSHOT_FAILED_NO_NETWORK = 76
    SNAPSHOT_LIMIT_REACHED = 85
    FREEZE_FAILED = 121
    FREEZE_TIMEOUT = 122
    UNABLE_TO_OPEN_MOUNT = 123
    ENGINE_NOT_FOUND = 124
    SNAPSHOT_RATE_EXCEEDED = 173
    PRE_SCRIPT_FAILED = 300
    POST_SCRIPT_FAILED = 301
    PRE_SCRIPT_NOT_FOUND = 302
    POST_SCRIPT_NOT_FOUND = 303
    PRE_SCRIPT_PERMISSION = 306
    POST_SCRIPT_PERMISSION = 307
    PRE_SCRIPT_TIMEOUT = 308
    POST_SCRIPT_TIMEOUT = 309
    PRE_KEEPER_LOST = 310
    POST_KEEPER_LOST = 311
    SCRIPT_CONFIGURATION_PERMISSION = 317
    TOO_LATE = 402
    WORKLOAD_PRE = 500
    WORKLOAD_CONFIGURATION = 501
    WORKLOAD_ROLE = 502
    WORKLOAD_NAME = 503
    WORKLOAD_AUTHORIZATION = 505
    WORKLOAD_CONNECTION = 506
    WORKLOAD_QUIESCING = 509
    WORKLOAD_NOT_HELD = 510
    HOST_SERVER_ERROR = 556
    SNAPSHOT_FAILED_RESTRICTED_NETWORK = 761

    @property
    def shown_as(self) -> str:
        """The name in ``extErrorCode`` and ``StatusCode.<name>,``."""
        return _NAMES[self]

    @property
    def health_state(self) -> int:
        """``vmHealthState`` of a report with this ext code: `GREEN`, `YELLOW` or `RED`."""
        if self in _RED:
            return RED
        return YELLOW if self in _YELLOW else GREEN


_RED = frozenset(
    {
        Code.SNAPSHOT_FAILED_NO_NETWORK,
        Code.SNAPSHOT_LIMIT_REACHED,
        Code.TOO_LATE,
        # The reference has no state for this code, and therefore writes no final report. Red like its
        # siblings.
        Code.HOST_SERVER_ERROR,
        Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK,
    }
)
_YELLOW = frozenset(
    {
        Code.PARAMETERS,
        Code.CERTIFICATE_NOT_FOUND,
        Code.FREEZE_FAILED,
        Code.FREEZE_TIMEOUT,
        Code.UNABLE_TO_OPEN_MOUNT,
        Code.ENGINE_NOT_FOUND,
        Code.PRE_SCRIPT_FAILED,
        Code.POST_SCRIPT_FAILED,
        Code.PRE_SCRIPT_NOT_FOUND,
        Code.POST_SCRIPT_NOT_FOUND,
        Code.PRE_SCRIPT_PERMISSION,
        Code.POST_SCRIPT_PERMISSION,
        Code.PRE_SCRIPT_TIMEOUT,
        Code.POST_SCRIPT_TIMEOUT,
        Code.PRE_KEEPER_LOST,
        Code.POST_KEEPER_LOST,
        Code.SCRIPT_CONFIGURATION_PERMISSION,
        Code.WORKLOAD_PRE,
        Code.WORKLOAD_CONFIGURATION,
        Code.WORKLOAD_ROLE,
        Code.WORKLOAD_NAME,
        Code.WORKLOAD_AUTHORIZATION,
        Code.WORKLOAD_CONNECTION,
        Code.WORKLOAD_QUIESCING,
        Code.WORKLOAD_NOT_HELD,
    }
)

_NAMES = {
    Code.APPLICATION_CONSISTENT: "success_appconsistent",
    Code.SUCCESS: "success",
    Code.ERROR: "error",
    Code.ALREADY_PROCESSED: "SuccessAlreadyProcessedInput",
    Code.TRANSITIONING: "ExtensionTempTerminalState",
    Code.PARAMETERS: "error_parameter",
    Code.FILE_NOT_FOUND: "error_12",
    Code.CERTIFICATE_NOT_FOUND: "FailedHandlerGuestAgentCertificateNotFound",
    Code.INVALID_LUN_LIST: "FailedInvalidDataDiskLunList",
    Code.SNAPSHOT_FAILED_NO_NETWORK: "FailedRetryableSnapshotFailedNoNetwork",
    Code.SNAPSHOT_LIMIT_REACHED: "FailedSnapshotLimitReached",
    Code.FREEZE_FAILED: "FailedRetryableFsFreezeFailed",
    Code.FREEZE_TIMEOUT: "FailedRetryableFsFreezeTimeout",
    Code.UNABLE_TO_OPEN_MOUNT: "FailedRetryableUnableToOpenMount",
    Code.ENGINE_NOT_FOUND: "FailedSafeFreezeBinaryNotFound",
    Code.SNAPSHOT_RATE_EXCEEDED: "FailedRetryableSnapshotRateExceeded",
    Code.PRE_SCRIPT_FAILED: "FailedPrepostPreScriptFailed",
    Code.POST_SCRIPT_FAILED: "FailedPrepostPostScriptFailed",
    Code.PRE_SCRIPT_NOT_FOUND: "FailedPrepostPreScriptNotFound",
    Code.POST_SCRIPT_NOT_FOUND: "FailedPrepostPostScriptNotFound",
    Code.PRE_SCRIPT_PERMISSION: "FailedPrepostPreScriptPermissionError",
    Code.POST_SCRIPT_PERMISSION: "FailedPrepostPostScriptPermissionError",
    Code.PRE_SCRIPT_TIMEOUT: "FailedPrepostPreScriptTimeout",
    Code.POST_SCRIPT_TIMEOUT: "FailedPrepostPostScriptTimeout",
    Code.PRE_KEEPER_LOST: "FailedPrepostPluginhostPreTimeout",
    Code.POST_KEEPER_LOST: "FailedPrepostPluginhostPostTimeout",
    Code.SCRIPT_CONFIGURATION_PERMISSION: "FailedPrepostPluginConfigPermissionError",
    Code.TOO_LATE: "FailedGuestAgentInvokedCommandTooLate",
    Code.WORKLOAD_PRE: "FailedWorkloadPreError",
    Code.WORKLOAD_CONFIGURATION: "FailedWorkloadConfParsingError",
    Code.WORKLOAD_ROLE: "FailedWorkloadInvalidRole",
    Code.WORKLOAD_NAME: "FailedWorkloadInvalidWorkloadName",
    Code.WORKLOAD_AUTHORIZATION: "FailedWorkloadAuthorizationMissing",
    Code.WORKLOAD_CONNECTION: "FailedWorkloadConnectionError",
    Code.WORKLOAD_QUIESCING: "FailedWorkloadQuiescingError",
    Code.WORKLOAD_NOT_HELD: "FailedWorkloadQuiescingTimeout",
    Code.HOST_SERVER_ERROR: "FailedHostSnapshotRemoteServerError",
    Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK: "FailedRetryableSnapshotFailedRestrictedNetwork",
}
