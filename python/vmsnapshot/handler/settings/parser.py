"""What Azure Backup asks for: the settings of one backup job, parsed once into types that cannot be wrong.

Wire names stop here. Every rule is from chapter 1 of the extension's contract: defaults, what wins over
what, and which bad value is which code. It neither decrypts (``protected``) nor chooses a mode (``mode``).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import enum
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.files import read_text, write_atomically
from vmsnapshot.handler.secret import SasUri, Secret

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
class Envelope:
    """What a settings file holds, before anything in it is decrypted or understood."""

    public: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The public settings; empty when there are none. Not shown: they can hold a token and signatures."""
    protected_text: Secret | None = None
    """The encrypted settings, base64; there may be none."""
    thumbprint: str | None = None
    """Names the certificate they are encrypted for, unchecked."""
    problem: str | None = None
    """Why the file, or a part of it, cannot be used; without values."""


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
    """Settings that cannot be used; holds what a final status needs. The message has no secret."""

    def __init__(self, message: str, *, run_code: Code, ext_code: Code, job: Job) -> None:
        super().__init__(message)
        self.run_code = run_code
        self.ext_code = ext_code
        self.job = job


def read_envelope(path: Path) -> Envelope:
    """Reads a settings file; one that cannot be read or understood gives an empty envelope with a `problem`.

    It never fails: whatever the file is, the job it stands for must get a status.
    """
    try:
        content = read_text(path)
    except OSError as error:
        return Envelope(problem=f"the settings file cannot be read: {error.strerror}")
    if content is None:
        return Envelope(problem="there is no settings file")
    if not content:
        # What an agent writes for a handler that was given no settings.
        return Envelope(problem="the settings file is empty")
    document = _json_object(content)
    if document is None:
        return Envelope(problem="the settings file is not a JSON object")
    handler_settings = next(iter(_handler_settings(document)), None)
    if handler_settings is None:
        return Envelope(problem="the settings file holds no handler settings")
    public = handler_settings.get("publicSettings")
    protected_text = handler_settings.get("protectedSettings")
    thumbprint = handler_settings.get("protectedSettingsCertThumbprint")
    problem = None
    if not isinstance(public, (dict, type(None))):
        problem = "publicSettings is not an object"
    elif not isinstance(protected_text, (str, type(None))):
        problem = "protectedSettings is not a text"
    return Envelope(
        public=public if isinstance(public, dict) else {},
        protected_text=Secret(protected_text) if isinstance(protected_text, str) and protected_text else None,
        thumbprint=thumbprint.strip() if isinstance(thumbprint, str) and thumbprint.strip() else None,
        problem=problem,
    )


def quick_job(envelope: Envelope) -> Job:
    """Returns what can be told of the job from the public settings, without a decryption; it never fails."""
    return _job(envelope.public, {})


def parse(envelope: Envelope, protected: Mapping[str, Any]) -> Settings:
    """Parses the settings of a job; `protected` is empty when there are none or they could not be decrypted.

    Raises:
        SettingsError: the settings cannot be used, with the codes and the job for the final status.
    """
    public = envelope.public
    parser = _Parser(_job(public, protected))
    if envelope.problem:
        parser.warnings.append(envelope.problem)
    if not public and not protected:
        because = f": {envelope.problem}" if envelope.problem else ""
        raise SettingsError(
            f"unable to load certificate{because}",
            run_code=Code.CERTIFICATE_NOT_FOUND,
            ext_code=Code.CERTIFICATE_NOT_FOUND,
            job=parser.job,
        )
    for owner, settings in (("public", public), ("protected", protected)):
        parser.expect_texts(owner, settings)
    request = parser.object_str("public", public.get("objectStr"))
    if "backupMetadata" not in request:
        raise parser.unusable("the public objectStr has no backupMetadata")
    blobs = parser.blobs(protected.get("objectStr"))
    command = parser.command(public.get("commandToExecute"))
    disks = parser.included_disks(request.get("includedDisks"))
    return Settings(
        job=parser.job,
        command=command,
        backup_metadata=parser.backup_metadata(request["backupMetadata"], command),
        snapshot_task_token=parser.snapshot_task_token(request, protected),
        disks=disks,
        dynamic_configs=parser.dynamic_configs(request.get("dynamicConfigsFromCRP"), disks),
        blobs=blobs,
        custom=parser.custom_settings(public.get("customSettings"), protected.get("customSettings")),
        warnings=tuple(parser.warnings),
    )


def instant_of_ticks(ticks: Any) -> datetime.datetime | None:
    """Returns the UTC instant of .NET ticks, 100 ns units since the year 1; none for what is no whole number.

    A rounded number such as ``6.36458E+17`` is none too: its six digits tell an instant to about 28 hours.
    """
    if isinstance(ticks, str) and re.fullmatch(r"[0-9]{1,32}", ticks.strip()):
        ticks = int(ticks)
    if not _is_integer(ticks):
        return None
    try:
        # What is before the year 1 or after 9999 overflows.
        return _YEAR_1 + datetime.timedelta(microseconds=ticks // 10)
    except OverflowError:
        return None


def without_protected_settings(text: str) -> str | None:
    """Returns a settings file's text without ``protectedSettings``; none where it has none to be found."""
    document = _json_object(text)
    if document is None:
        return None
    holders = [found for found in _handler_settings(document) if found and "protectedSettings" in found]
    for settings in holders:
        del settings["protectedSettings"]
    try:
        return json.dumps(document) if holders else None
    except RecursionError:
        # What the parser just managed can be too deep for the writer.
        return None


def scrub(path: Path) -> bool:
    """Takes ``protectedSettings`` out of a settings file; a missing or broken one is left alone.

    Returns False if the file cannot be read or replaced, on a full disk say: worth a line in the log, and no
    reason not to back up.

    The file is replaced, not rewritten. An agent that writes it again at this very moment writes the settings
    of the same number, thus the same ones, so nothing but their protected part can be lost.
    """
    try:
        before = read_text(path)
        text = None if before is None else without_protected_settings(before)
        if text is not None:
            # The public part can hold signatures as well.
            write_atomically(path, text, 0o600)
    except OSError:
        return False
    return True


def is_true(value: Any) -> bool:
    """Reads a flag that may be a text: "false", "0", "no" and "" are false whatever their case."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "false", "0", "no", "none", "null")
    return bool(value)


_V2 = "microsoft.compute/virtualmachines"
_YEAR_1 = datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc)
# The reference's words for this code.
_UNUSABLE = "required field empty or not correct"

_TEXTS = {
    "public": ("taskId", "vmType", "logsBlobUri", "statusBlobUri"),
    "protected": ("logsBlobUri", "statusBlobUri"),
}
_MODES = tuple(mode.value for mode in SnapshotMode)
_DYNAMIC_CONFIGS = {
    "issnapshotttlenabled": "is_snapshot_ttl_enabled",
    "usemccftofetchdsasforalldisks": "use_mccf_to_fetch_dsas_for_all_disks",
    "usemccfforlad": "use_mccf_for_lad",
    "enablevmsnapshotextensionpolling": "enable_polling",
}


class _Parser:
    """Parses one job's settings; knows the job that an error has to name, and collects warnings."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.warnings: list[str] = []

    def unusable(self, what: str) -> SettingsError:
        """The error of input that cannot be used."""
        return self._error(f"{_UNUSABLE}: {what}", Code.PARAMETERS)

    def expect_texts(self, owner: str, settings: Mapping[str, Any]) -> None:
        """Warns of what should be a text and is not; it was read as missing."""
        for key in _TEXTS[owner]:
            if settings.get(key) is not None and _text(settings.get(key)) is None:
                self._ignored(f"{owner} {key}", "a text")

    def object_str(self, owner: str, value: Any) -> dict[str, Any]:
        """Decodes an ``objectStr``."""
        if not isinstance(value, str) or not value:
            raise self.unusable(f"the {owner} objectStr is missing or not a text")
        # What follows raises outside the handlers: an error of a decoder holds all that it was given.
        text = _ascii_of_base64(value)
        if text is None:
            raise self.unusable(f"the {owner} objectStr is not base64 of ASCII")
        decoded = _json_object(text.strip().strip("'"))
        if decoded is None:
            raise self.unusable(f"the {owner} objectStr is not a JSON object")
        return decoded

    def blobs(self, value: Any) -> tuple[SasUri, ...]:
        """Reads the blob URIs out of the protected ``objectStr``."""
        if value is None or value == "":
            return ()
        decoded = self.object_str("protected", value)
        if "blobSASUri" not in decoded:
            raise self.unusable("the protected objectStr has no blobSASUri")
        uris = decoded["blobSASUri"]
        if uris is None:
            return ()
        if not isinstance(uris, list):
            raise self.unusable("blobSASUri is not a list")
        blobs = tuple(SasUri(_text(uri) or "") for uri in uris)
        for number, blob in enumerate(blobs, start=1):
            if not blob:
                # It keeps its place: a disk that is left out would not be missed in the result.
                self.warnings.append(f"entry {number} of blobSASUri is empty or not a text")
        return blobs

    def command(self, value: Any) -> Command:
        """Reads ``commandToExecute``: a word in it decides."""
        if not isinstance(value, str):
            raise self._failed("commandToExecute is missing or not a text")
        for command in (Command.INSTALL, Command.SNAPSHOT):
            if command.value in value.lower():
                return command
        raise self._error("command is not correct", Code.PARAMETERS)

    def backup_metadata(self, value: Any, command: Command) -> tuple[Pair, ...]:
        """Reads ``backupMetadata``, which only a snapshot needs."""
        if value is None and command is Command.INSTALL:
            return ()
        if value is None:
            raise self._error(_UNUSABLE, Code.PARAMETERS)
        if not isinstance(value, list):
            raise self.unusable("backupMetadata is not a list")
        return self._pairs("backupMetadata", value)

    def snapshot_task_token(self, request: Mapping[str, Any], protected: Mapping[str, Any]) -> Secret:
        """Reads the token: the protected one counts only where the request lacks the key."""
        owner = request if "snapshotTaskToken" in request else protected
        value = owner.get("snapshotTaskToken")
        if value is not None and _text(value) is None:
            self._ignored("snapshotTaskToken", "a text")
        return Secret(_text(value) or "")

    def included_disks(self, value: Any) -> IncludedDisks:
        """Reads ``includedDisks``."""
        if value is None:
            return IncludedDisks()
        # To guess which disks are meant could leave some out, or snapshot excluded ones.
        if not isinstance(value, dict):
            raise self.unusable("includedDisks is not an object")
        luns = value.get("dataDiskLunList")
        if luns is None:
            luns = []
        if not isinstance(luns, list) or not all(map(_is_integer, luns)):
            raise self.unusable("dataDiskLunList is not a list of whole numbers")
        minutes = value.get("instantAccessDurationMinutes")
        return IncludedDisks(
            luns=(*luns, OS_DISK_LUN) if self._flag(value, "isOSDiskIncluded") else tuple(luns),
            any_disk_excluded=bool(self._flag(value, "isAnyDiskExcluded")),
            any_write_accelerated_disk=bool(self._flag(value, "isAnyWADiskIncluded")),
            vmgs_blob=bool(self._flag(value, "isVmgsBlobIncluded")),
            any_direct_drive_disk=bool(self._flag(value, "isAnyDirectDriveDiskIncluded")),
            vmmd_blob=bool(self._flag(value, "isVmmdBlobIncluded")),
            azure_disk_encryption=bool(self._flag(value, "isVMADEEnabled")),
            instant_access_duration_minutes=self._integer("instantAccessDurationMinutes", minutes),
        )

    def dynamic_configs(self, value: Any, disks: IncludedDisks) -> DynamicConfigs:
        """Reads ``dynamicConfigsFromCRP``."""
        if not isinstance(value, (list, type(None))):
            self._ignored("dynamicConfigsFromCRP", "a list")
            value = None
        values: dict[str, Any] = {}
        for key, setting in self._pairs("dynamicConfigsFromCRP", value or []):
            name = _DYNAMIC_CONFIGS.get(key.lower())
            if name is None:
                self.warnings.append("dynamicConfigsFromCRP has a key that is not known")
            else:
                values[name] = setting
        return DynamicConfigs(**values, is_vmmd_blob_included=disks.vmmd_blob)

    def custom_settings(self, public: Any, protected: Any) -> CustomSettings:
        """Reads ``customSettings``; each key for itself, whichever others there are."""
        value = protected if public is None or public == "" else public
        if value is None or value == "":
            return CustomSettings()
        custom = _json_object(value) if isinstance(value, str) else None
        if custom is None:
            raise self._failed("customSettings is not a text that holds a JSON object")
        mode = custom.get("takeSnapshotFrom")
        if mode is not None and mode not in _MODES:
            self._ignored("takeSnapshotFrom", "a known mode")
        task_id = custom.get("backupTaskId")
        if task_id is not None and _text(task_id) is None:
            self._ignored("backupTaskId", "a text")
        luns = custom.get("waDiskLunList")
        if not isinstance(luns, (list, type(None))):
            self._ignored("waDiskLunList", "a list")
            luns = None
        return CustomSettings(
            take_snapshot_from=SnapshotMode(mode) if mode in _MODES else None,
            is_managed_vm=bool(self._flag(custom, "isManagedVm")),
            backup_task_id=_text(task_id),
            write_accelerated_luns=tuple(filter(_is_integer, luns or [])),
            can_take_crash_consistent_snapshot=self._flag(custom, "canTakeCrashConsistentSnapshot"),
            backup_retry_count=self._integer("backupRetryCount", custom.get("backupRetryCount")),
            is_only_os_disk_backup_enabled=self._flag(custom, "isOnlyOSDiskBackupEnabled"),
        )

    def _pairs(self, owner: str, entries: list[Any]) -> tuple[Pair, ...]:
        pairs = []
        for number, entry in enumerate(entries, start=1):
            if (
                isinstance(entry, dict)
                and _text(entry.get("Key"))
                and "Value" in entry
                and _is_scalar(entry["Value"])
            ):
                pairs.append(Pair(entry["Key"], entry["Value"]))
            else:
                self.warnings.append(f"entry {number} of {owner} is malformed and left out")
        return tuple(pairs)

    def _flag(self, settings: Mapping[str, Any], key: str) -> bool | None:
        # A flag counts only as JSON true: the reference takes the text "false" for true.
        value = settings.get(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self._ignored(key, "true or false")
        return None

    def _integer(self, key: str, value: Any) -> int | None:
        if value is not None and not _is_integer(value):
            self._ignored(key, "a whole number")
            return None
        number: int | None = value
        return number

    def _ignored(self, what: str, expected: str) -> None:
        self.warnings.append(f"{what} is ignored: it is not {expected}")

    def _failed(self, what: str) -> SettingsError:
        return self._error(f"Enable failed. {what}", Code.ERROR)

    def _error(self, message: str, code: Code) -> SettingsError:
        return SettingsError(message, run_code=code, ext_code=code, job=self.job)


def _job(public: Mapping[str, Any], protected: Mapping[str, Any]) -> Job:
    ticks = public.get("commandStartTimeUTCTicks")
    return Job(
        task_id=_text(public.get("taskId")),
        start_ticks=ticks if _is_scalar(ticks) else None,
        is_v2=(_text(public.get("vmType")) or "").lower() == _V2,
        status_blob=_blob(public.get("statusBlobUri")) or _blob(protected.get("statusBlobUri")),
        logs_blob=_blob(public.get("logsBlobUri")) or _blob(protected.get("logsBlobUri")),
    )


def _blob(value: Any) -> SasUri | None:
    return SasUri(_text(value) or "") or None


def _handler_settings(document: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The handler settings of each element; none for an element that has none to be understood."""
    elements = document.get("runtimeSettings")
    found = [
        element.get("handlerSettings") if isinstance(element, dict) else None
        for element in (elements if isinstance(elements, list) else [])
    ]
    return [settings if isinstance(settings, dict) else None for settings in found]


def _ascii_of_base64(text: str) -> str | None:
    try:
        # Without `validate`, what is outside the alphabet is passed over.
        return base64.b64decode(text.encode("ascii", "ignore")).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    """The value if it is a text that a file can hold: JSON can name half a surrogate pair, which none can."""
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    """Whether it can be sent on as it came: JSON knows no NaN, and what is nested has no place there."""
    return (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, float) and math.isfinite(value))
    )
