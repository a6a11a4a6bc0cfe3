"""What Azure Backup asks for, as types that cannot be wrong.

Wire names stop at the parser. The defaults, and what each field means, are from chapter 1 of the extension's
contract.
"""

from __future__ import annotations

import datetime
import enum
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import SasUri, Secret
from vmsnapshot.handler.settings.values import is_integer

OS_DISK_LUN = -1
"""The number of the OS disk in a list of LUNs."""


class Command(enum.Enum):
    """What ``commandToExecute`` asks for."""

    SNAPSHOT = "snapshot"
    INSTALL = "install"


class SnapshotMode(enum.Enum):
    """Who takes the snapshots; values are the wire's."""

    ONLY_GUEST = "onlyGuest"
    FIRST_GUEST_THEN_HOST = "firstGuestThenHost"
    FIRST_HOST_THEN_GUEST = "firstHostThenGuest"
    ONLY_HOST = "onlyHost"


class Pair(NamedTuple):
    """One ``{"Key": ..., "Value": ...}`` of the wire; the value is kept as it came."""

    key: str
    value: Any


@dataclass(frozen=True)
class IncludedDisks:
    """``includedDisks``: which disks the job is about."""

    luns: tuple[int, ...] = ()
    """The data disks' LUNs, then `OS_DISK_LUN` if the OS disk is included."""
    any_disk_excluded: bool = False
    any_write_accelerated_disk: bool = False
    vmgs_blob: bool = False
    any_direct_drive_disk: bool = False
    vmmd_blob: bool = False
    azure_disk_encryption: bool = False
    instant_access_duration_minutes: int | None = None


@dataclass(frozen=True)
class DynamicConfigs:
    """``dynamicConfigsFromCRP``: values as they came, for the host; `polling` is our own reading of one."""

    is_snapshot_ttl_enabled: Any = False
    use_mccf_to_fetch_dsas_for_all_disks: Any = False
    use_mccf_for_lad: Any = False
    enable_polling: Any = False
    is_vmmd_blob_included: Any = False

    @property
    def polling(self) -> bool:
        """Whether the polling service is wanted: the text "false" is false."""
        return is_true(self.enable_polling)

    def pairs(self) -> tuple[Pair, ...]:
        """The five settings as the host gets them, in its order and spelling."""
        return (
            Pair("isSnapshotTtlEnabled", self.is_snapshot_ttl_enabled),
            Pair("useMccfToFetchDsasForAllDisks", self.use_mccf_to_fetch_dsas_for_all_disks),
            Pair("useMccfForLad", self.use_mccf_for_lad),
            Pair("EnableVMSnapshotExtensionPolling", self.enable_polling),
            Pair("isVmmdBlobIncluded", self.is_vmmd_blob_included),
        )


@dataclass(frozen=True)
class CustomSettings:
    """``customSettings``."""

    take_snapshot_from: SnapshotMode | None = None
    """None when missing, null or unknown."""
    is_managed_vm: bool = False
    backup_task_id: str | None = None
    write_accelerated_luns: tuple[int, ...] = ()
    can_take_crash_consistent_snapshot: bool | None = None
    backup_retry_count: int | None = None
    is_only_os_disk_backup_enabled: bool | None = None
    """None when the key is missing: telemetry names the billing type only if it is there."""


@dataclass(frozen=True)
class Job:
    """What of a job's settings is needed to report on it; known even when the rest cannot be used."""

    task_id: str | None = None
    start_ticks: Any = None
    """``commandStartTimeUTCTicks`` as it came: it is echoed with its JSON type."""
    is_v2: bool = False
    """Whether ``vmType`` is ``microsoft.compute/virtualmachines``."""
    status_blob: SasUri | None = None
    logs_blob: SasUri | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of one backup job."""

    job: Job
    command: Command
    backup_metadata: tuple[Pair, ...]
    snapshot_task_token: Secret
    disks: IncludedDisks = field(default_factory=IncludedDisks)
    dynamic_configs: DynamicConfigs = field(default_factory=DynamicConfigs)
    blobs: tuple[SasUri, ...] = ()
    """One a disk; empty when the job names none."""
    custom: CustomSettings = field(default_factory=CustomSettings)
    warnings: tuple[str, ...] = ()
    """What was ignored or replaced, for the log; without values."""

    @property
    def host_task_id(self) -> str | None:
        """The task id that the host is told."""
        return self.custom.backup_task_id or self.job.task_id

    @property
    def start(self) -> datetime.datetime | None:
        """When the job was to start, UTC; none where the ticks cannot be used for the 140-minute rule."""
        return instant_of_ticks(self.job.start_ticks)


class SettingsError(Exception):
    """Settings that cannot be used; holds what a final status needs. The message has no secret.

    `code` is the run code and the ext code: where settings are refused they are the same.
    """

    def __init__(self, message: str, *, code: Code, job: Job) -> None:
        super().__init__(message)
        self.code = code
        self.job = job


def instant_of_ticks(ticks: Any) -> datetime.datetime | None:
    """Returns the UTC instant of .NET ticks, 100 ns units since the year 1; none for what is no whole number.

    A rounded number such as ``6.36458E+17`` is none too: its six digits tell an instant to about 28 hours.
    """
    if isinstance(ticks, str) and re.fullmatch(r"[0-9]{1,32}", ticks.strip()):
        ticks = int(ticks)
    if not is_integer(ticks):
        return None
    try:
        # What is before the year 1 or after 9999 overflows.
        return _YEAR_1 + datetime.timedelta(microseconds=ticks // 10)
    except OverflowError:
        return None


def is_true(value: Any) -> bool:
    """Reads a flag that may be a text: "false", "0", "no" and "" are false whatever their case."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "0", "no", "none", "null")
    return bool(value)


_YEAR_1 = datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc)
