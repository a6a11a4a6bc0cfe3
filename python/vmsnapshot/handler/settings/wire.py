"""What Azure Backup asks for, as types that are always valid.

Names of the wire format end at the parser. Chapter 1 of the extension's contract defines the defaults and the
meaning of each field.
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
    """The values of ``commandToExecute``."""

    SNAPSHOT = "snapshot"
    INSTALL = "install"


class SnapshotMode(enum.Enum):
    """Who takes the snapshots. The values are those of the wire format."""

    ONLY_GUEST = "onlyGuest"
    FIRST_GUEST_THEN_HOST = "firstGuestThenHost"
    FIRST_HOST_THEN_GUEST = "firstHostThenGuest"
    ONLY_HOST = "onlyHost"


class Pair(NamedTuple):
    """One ``{"Key": ..., "Value": ...}`` of the wire format, with its value unchanged."""

    key: str
    value: Any


@dataclass(frozen=True)
class IncludedDisks:
    """``includedDisks``: the disks of the job."""

    luns: tuple[int, ...] = ()
    """The LUNs of the data disks, then `OS_DISK_LUN` if the OS disk is included."""
    any_disk_excluded: bool = False
    any_write_accelerated_disk: bool = False
    vmgs_blob: bool = False
    any_direct_drive_disk: bool = False
    vmmd_blob: bool = False
    azure_disk_encryption: bool = False
    instant_access_duration_minutes: int | None = None


@dataclass(frozen=True)
class DynamicConfigs:
    """``dynamicConfigsFromCRP``, with unchanged values, for the host. `polling` interprets one of them."""

    is_snapshot_ttl_enabled: Any = False
    use_mccf_to_fetch_dsas_for_all_disks: Any = False
    use_mccf_for_lad: Any = False
    enable_polling: Any = False
    is_vmmd_blob_included: Any = False

    @property
    def polling(self) -> bool:
        """Whether the polling service should run. The string "false" means false."""
        return is_true(self.enable_polling)

    def pairs(self) -> tuple[Pair, ...]:
        """Returns the five settings in the order and spelling that the host expects."""
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
    """`None` if the mode is missing, null or unknown."""
    is_managed_vm: bool = False
    backup_task_id: str | None = None
    write_accelerated_luns: tuple[int, ...] = ()
    can_take_crash_consistent_snapshot: bool | None = None
    backup_retry_count: int | None = None
    is_only_os_disk_backup_enabled: bool | None = None
    """`None` if the key is missing. The telemetry has the billing type only if the key is there."""


@dataclass(frozen=True)
class Job:
    """What a report needs from the settings of a job. It is known even if the rest cannot be used."""

    task_id: str | None = None
    start_ticks: Any = None
    """``commandStartTimeUTCTicks``, unchanged: the report repeats it with its JSON type."""
    is_v2: bool = False
    """Whether ``vmType`` is ``microsoft.compute/virtualmachines``."""
    status_blob: SasUri | None = None
    logs_blob: SasUri | None = None


class Refusal(NamedTuple):
    """Why a job is not started although its settings can be read. `code` is both the run and the ext code."""

    code: Code
    message: str


@dataclass(frozen=True)
class Settings:
    """The settings of one backup job."""

    job: Job
    command: Command | None
    """`None` if it is missing or unknown. Then there is a `refusal`."""
    backup_metadata: tuple[Pair, ...]
    snapshot_task_token: Secret
    disks: IncludedDisks = field(default_factory=IncludedDisks)
    dynamic_configs: DynamicConfigs = field(default_factory=DynamicConfigs)
    blobs: tuple[SasUri, ...] = ()
    """One blob per disk. Empty if the job names none."""
    custom: CustomSettings = field(default_factory=CustomSettings)
    refusal: Refusal | None = None
    """The 140-minute rule comes first, and the report is that of a job that was started (contract 2.2)."""
    protected_problem: str | None = None
    """Why the protected settings could not be decrypted. Then nothing of them is known."""
    warnings: tuple[str, ...] = ()
    """What was ignored or replaced, for the log. Contains no values."""

    @property
    def host_task_id(self) -> str | None:
        """The task id for the host."""
        return self.custom.backup_task_id or self.job.task_id

    @property
    def start(self) -> datetime.datetime | None:
        """The start time of the job in UTC, or `None` if the ticks cannot be used for the 140-minute rule."""
        return instant_of_ticks(self.job.start_ticks)

    @property
    def has_start_ticks(self) -> bool:
        """Whether the job has ticks, readable or not. Such a job asks for the host's time (contract 2.2)."""
        return self.job.start_ticks not in (None, "")


class SettingsError(Exception):
    """The settings cannot be used. The error has what a final status needs, and no secret.

    `code` is both the run code and the ext code.
    """

    def __init__(self, message: str, *, code: Code, job: Job) -> None:
        super().__init__(message)
        self.code = code
        self.job = job


def instant_of_ticks(ticks: Any) -> datetime.datetime | None:
    """Returns the UTC instant of .NET ticks (100 ns since the year 1), or `None` if they are not an integer.

    A rounded number such as ``6.36458E+17`` gives `None` too, because six digits are only precise to 28
    hours.
    """
    if isinstance(ticks, str) and re.fullmatch(r"[0-9]{1,32}", ticks.strip()):
        ticks = int(ticks)
    if not is_integer(ticks):
        return None
    try:
        # An instant before the year 1 or after 9999 overflows.
        return _YEAR_1 + datetime.timedelta(microseconds=ticks // 10)
    except OverflowError:
        return None


def is_true(value: Any) -> bool:
    """Reads a flag that may be a string. "false", "0", "no" and "" mean false in any case of letters."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "0", "no", "none", "null")
    return bool(value)


_YEAR_1 = datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc)
