"""The numbers by which Azure Backup knows what a job came to.

A *run code* is ``status.code``, an *ext code* is ``vmHealthInfo.vmHealthStatusCode``; both are taken from
this one table. The names are those that the service and the portal show (``extErrorCode``,
``StatusCode.<name>``).
"""

from __future__ import annotations

import enum

GREEN = 0
YELLOW = 128
RED = 256


class Code(enum.IntEnum):
    """A code; `shown_as` is its name, `health_state` the colour that it gives the VM."""

    APPLICATION_CONSISTENT = 0
    SUCCESS = 1
    ERROR = 2
    ALREADY_PROCESSED = 3
    TRANSITIONING = 4
    PARAMETERS = 11
    FILE_NOT_FOUND = 12
    WRONG_TIME = 13
    SAME_TASK = 14
    HTTP_FAILURE = 15
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
    PLUGIN_HOST_CONFIG_PARSING = 304
    PLUGIN_CONFIG_PARSING = 305
    PRE_SCRIPT_PERMISSION = 306
    POST_SCRIPT_PERMISSION = 307
    PRE_SCRIPT_TIMEOUT = 308
    POST_SCRIPT_TIMEOUT = 309
    PLUGIN_HOST_PRE_TIMEOUT = 310
    PLUGIN_HOST_POST_TIMEOUT = 311
    CHECKSUM_MISMATCH = 312
    PLUGIN_HOST_CONFIG_NOT_FOUND = 313
    PLUGIN_HOST_CONFIG_PERMISSION = 314
    PLUGIN_HOST_CONFIG_OWNERSHIP = 315
    PLUGIN_CONFIG_NOT_FOUND = 316
    PLUGIN_CONFIG_PERMISSION = 317
    PLUGIN_CONFIG_OWNERSHIP = 318
    TOO_LATE = 402
    WORKLOAD_PRE = 500
    WORKLOAD_CONFIGURATION = 501
    WORKLOAD_ROLE = 502
    WORKLOAD_NAME = 503
    WORKLOAD_POST = 504
    WORKLOAD_AUTHORIZATION = 505
    WORKLOAD_CONNECTION = 506
    WORKLOAD_IPC_DIRECTORY = 507
    WORKLOAD_DATABASE_STATUS = 508
    WORKLOAD_QUIESCING = 509
    WORKLOAD_QUIESCING_TIMEOUT = 510
    WORKLOAD_NO_ARCHIVE_LOG = 511
    WORKLOAD_LOG_MODE = 512
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
        return YELLOW if self in _YELLOW or 300 <= self < 400 or 500 <= self <= 512 else GREEN


_RED = frozenset(
    {
        Code.HTTP_FAILURE,
        Code.SNAPSHOT_FAILED_NO_NETWORK,
        Code.SNAPSHOT_LIMIT_REACHED,
        Code.TOO_LATE,
        # The reference has no state for it, and so no final report: red, as its siblings.
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
    Code.WRONG_TIME: "error_wrong_time",
    Code.SAME_TASK: "error_same_taskid",
    Code.HTTP_FAILURE: "error_http_failure",
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
    Code.PLUGIN_HOST_CONFIG_PARSING: "FailedPrepostPluginhostConfigParsing",
    Code.PLUGIN_CONFIG_PARSING: "FailedPrepostPluginConfigParsing",
    Code.PRE_SCRIPT_PERMISSION: "FailedPrepostPreScriptPermissionError",
    Code.POST_SCRIPT_PERMISSION: "FailedPrepostPostScriptPermissionError",
    Code.PRE_SCRIPT_TIMEOUT: "FailedPrepostPreScriptTimeout",
    Code.POST_SCRIPT_TIMEOUT: "FailedPrepostPostScriptTimeout",
    Code.PLUGIN_HOST_PRE_TIMEOUT: "FailedPrepostPluginhostPreTimeout",
    Code.PLUGIN_HOST_POST_TIMEOUT: "FailedPrepostPluginhostPostTimeout",
    Code.CHECKSUM_MISMATCH: "FailedPrepostCheckSumMismatch",
    Code.PLUGIN_HOST_CONFIG_NOT_FOUND: "FailedPrepostPluginhostConfigNotFound",
    Code.PLUGIN_HOST_CONFIG_PERMISSION: "FailedPrepostPluginhostConfigPermissionError",
    Code.PLUGIN_HOST_CONFIG_OWNERSHIP: "FailedPrepostPluginhostConfigOwnershipError",
    Code.PLUGIN_CONFIG_NOT_FOUND: "FailedPrepostPluginConfigNotFound",
    Code.PLUGIN_CONFIG_PERMISSION: "FailedPrepostPluginConfigPermissionError",
    Code.PLUGIN_CONFIG_OWNERSHIP: "FailedPrepostPluginConfigOwnershipError",
    Code.TOO_LATE: "FailedGuestAgentInvokedCommandTooLate",
    Code.WORKLOAD_PRE: "FailedWorkloadPreError",
    Code.WORKLOAD_CONFIGURATION: "FailedWorkloadConfParsingError",
    Code.WORKLOAD_ROLE: "FailedWorkloadInvalidRole",
    Code.WORKLOAD_NAME: "FailedWorkloadInvalidWorkloadName",
    Code.WORKLOAD_POST: "FailedWorkloadPostError",
    Code.WORKLOAD_AUTHORIZATION: "FailedWorkloadAuthorizationMissing",
    Code.WORKLOAD_CONNECTION: "FailedWorkloadConnectionError",
    Code.WORKLOAD_IPC_DIRECTORY: "FailedWorkloadIPCDirectoryMissing",
    Code.WORKLOAD_DATABASE_STATUS: "FailedWorkloadDatabaseStatusChanged",
    Code.WORKLOAD_QUIESCING: "FailedWorkloadQuiescingError",
    Code.WORKLOAD_QUIESCING_TIMEOUT: "FailedWorkloadQuiescingTimeout",
    Code.WORKLOAD_NO_ARCHIVE_LOG: "FailedWorkloadDatabaseInNoArchiveLog",
    Code.WORKLOAD_LOG_MODE: "FailedWorkloadLogModeChanged",
    Code.HOST_SERVER_ERROR: "FailedHostSnapshotRemoteServerError",
    Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK: "FailedRetryableSnapshotFailedRestrictedNetwork",
}
