"""Parses the settings of one backup job into the types of ``wire``.

Names of the wire format end here. Every rule comes from chapter 1 of the extension's contract: the defaults,
the precedence, and the code of each bad value. ``protected`` decrypts, and ``mode`` chooses the mode.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import SasUri, Secret, keep_out
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.job import TEXT_LIMIT_CHARACTERS, job_of, short_text
from vmsnapshot.handler.settings.values import is_integer, is_scalar, json_object, usable_text
from vmsnapshot.handler.settings.wire import (
    OS_DISK_LUN,
    Command,
    CustomSettings,
    DynamicConfigs,
    IncludedDisks,
    Job,
    Pair,
    Refusal,
    Settings,
    SettingsError,
    SnapshotMode,
)


def parse(
    envelope: Envelope, protected: Mapping[str, Any], *, protected_problem: str | None = None
) -> Settings:
    """Parses the settings of a job. `protected` is empty if there are none, or the decryption failed.

    In the second case `protected_problem` says why.

    Raises:
        SettingsError: the settings cannot be used. It has the code and the job for the final status.
    """
    public = envelope.public
    parser = _Parser(job_of(public, protected))
    if envelope.problem:
        parser.warnings.append(envelope.problem)
    if not public and not protected:
        problem = protected_problem or envelope.problem
        because = f": {problem}" if problem else ""
        raise SettingsError(
            f"unable to load certificate{because}",
            code=Code.CERTIFICATE_NOT_FOUND,
            job=parser.job,
        )
    for owner, settings in (("public", public), ("protected", protected)):
        parser.expect_texts(owner, settings)
    request = parser.object_str("public", public.get("objectStr"))
    if "backupMetadata" not in request:
        raise parser.unusable("the public objectStr has no backupMetadata")
    blobs = parser.blobs(protected.get("objectStr"))
    command = parser.command(public.get("commandToExecute"))
    backup_metadata = parser.backup_metadata(request["backupMetadata"], command)
    custom = parser.custom_settings(public.get("customSettings"), protected.get("customSettings"))
    disks = parser.included_disks(request.get("includedDisks"))
    return Settings(
        job=parser.job,
        command=command,
        backup_metadata=backup_metadata,
        snapshot_task_token=parser.snapshot_task_token(request, protected),
        disks=disks,
        dynamic_configs=parser.dynamic_configs(request.get("dynamicConfigsFromCRP"), disks),
        blobs=blobs,
        custom=custom,
        refusal=parser.refusal,
        protected_problem=protected_problem,
        warnings=tuple(parser.warnings),
    )


# The reference's wording.
_UNUSABLE = "required field empty or not correct"
_FAILED = "Enable failed."

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
    """Parses the settings of one job. Collects warnings, and puts the job into each error.

    `refusal` is the first reason not to start the job. The rest of the settings is read all the same.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.refusal: Refusal | None = None
        self.warnings: list[str] = []

    def unusable(self, what: str) -> SettingsError:
        """Returns the error for input that cannot be used."""
        return SettingsError(f"{_UNUSABLE}: {what}", code=Code.PARAMETERS, job=self.job)

    def expect_texts(self, owner: str, settings: Mapping[str, Any]) -> None:
        """Warns of values that should be strings and are not. They count as missing."""
        for key in _TEXTS[owner]:
            if settings.get(key) is not None and usable_text(settings.get(key)) is None:
                self._ignored(f"{owner} {key}", "a string")
        task_id = settings.get("taskId")
        if usable_text(task_id) is not None and short_text(task_id) is None:
            self._ignored(f"{owner} taskId", f"a string of at most {TEXT_LIMIT_CHARACTERS} characters")

    def object_str(self, owner: str, value: Any) -> dict[str, Any]:
        """Decodes an ``objectStr``."""
        if not isinstance(value, str) or not value:
            raise self.unusable(f"the {owner} objectStr is missing or not a string")
        # Raise outside the exception handlers: the error of a decoder contains the whole input.
        text = _ascii_of_base64(value)
        if text is None:
            raise self.unusable(f"the {owner} objectStr is not base64 of ASCII")
        decoded = json_object(text.strip().strip("'"))
        if decoded is None:
            raise self.unusable(f"the {owner} objectStr is not a JSON object")
        return decoded

    def blobs(self, value: Any) -> tuple[SasUri, ...]:
        """Reads the blob URIs from the protected ``objectStr``."""
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
        blobs = tuple(SasUri(usable_text(uri) or "") for uri in uris)
        for number, blob in enumerate(blobs, start=1):
            if not blob:
                # The entry stays in the list. Otherwise the result would lack the disk, unnoticed.
                self.warnings.append(f"entry {number} of blobSASUri is empty or not a string")
        return blobs

    def command(self, value: Any) -> Command | None:
        """Reads ``commandToExecute``. A word in it decides."""
        if not isinstance(value, str):
            self._refuse(Code.ERROR, f"{_FAILED} commandToExecute is missing or not a string ")
            return None
        for command in (Command.INSTALL, Command.SNAPSHOT):
            if command.value in value.lower():
                return command
        self._refuse(Code.PARAMETERS, "command is not correct")
        return None

    def backup_metadata(self, value: Any, command: Command | None) -> tuple[Pair, ...]:
        """Reads ``backupMetadata``, which only a snapshot needs."""
        if value is None:
            if command is not Command.INSTALL:
                self._refuse(Code.PARAMETERS, _UNUSABLE)
            return ()
        if not isinstance(value, list):
            raise self.unusable("backupMetadata is not a list")
        return self._pairs("backupMetadata", value)

    def snapshot_task_token(self, request: Mapping[str, Any], protected: Mapping[str, Any]) -> Secret:
        """Reads the token. The protected one counts only if the request lacks the key."""
        owner = request if "snapshotTaskToken" in request else protected
        value = owner.get("snapshotTaskToken")
        if value is not None and usable_text(value) is None:
            self._ignored("snapshotTaskToken", "a string")
        token = usable_text(value) or ""
        keep_out(token)
        return Secret(token)

    def included_disks(self, value: Any) -> IncludedDisks:
        """Reads ``includedDisks``."""
        if value is None:
            return IncludedDisks()
        # No guess: it could omit disks, or snapshot excluded ones.
        if not isinstance(value, dict):
            raise self.unusable("includedDisks is not an object")
        luns = value.get("dataDiskLunList")
        if luns is None:
            luns = []
        if not isinstance(luns, list) or not all(map(is_integer, luns)):
            raise self.unusable("dataDiskLunList is not a list of integers")
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
                self.warnings.append("dynamicConfigsFromCRP has an unknown key")
            else:
                values[name] = setting
        return DynamicConfigs(**values, is_vmmd_blob_included=disks.vmmd_blob)

    def custom_settings(self, public: Any, protected: Any) -> CustomSettings:
        """Reads ``customSettings``. Each key is independent of the others."""
        value = protected if public is None or public == "" else public
        if value is None or value == "":
            return CustomSettings()
        custom = json_object(value) if isinstance(value, str) else None
        if custom is None:
            self._refuse(Code.ERROR, f"{_FAILED} customSettings is not a string with a JSON object ")
            return CustomSettings()
        mode = custom.get("takeSnapshotFrom")
        if mode is not None and mode not in _MODES:
            self._ignored("takeSnapshotFrom", "a known mode")
        task_id = custom.get("backupTaskId")
        if task_id is not None and usable_text(task_id) is None:
            self._ignored("backupTaskId", "a string")
        luns = custom.get("waDiskLunList")
        if not isinstance(luns, (list, type(None))):
            self._ignored("waDiskLunList", "a list")
            luns = None
        return CustomSettings(
            take_snapshot_from=SnapshotMode(mode) if mode in _MODES else None,
            is_managed_vm=bool(self._flag(custom, "isManagedVm")),
            backup_task_id=usable_text(task_id),
            write_accelerated_luns=tuple(filter(is_integer, luns or [])),
            can_take_crash_consistent_snapshot=self._flag(custom, "canTakeCrashConsistentSnapshot"),
            backup_retry_count=self._integer("backupRetryCount", custom.get("backupRetryCount")),
            is_only_os_disk_backup_enabled=self._flag(custom, "isOnlyOSDiskBackupEnabled"),
        )

    def _pairs(self, owner: str, entries: list[Any]) -> tuple[Pair, ...]:
        pairs = []
        for number, entry in enumerate(entries, start=1):
            if (
                isinstance(entry, dict)
                and usable_text(entry.get("Key"))
                and "Value" in entry
                and is_scalar(entry["Value"])
            ):
                pairs.append(Pair(entry["Key"], entry["Value"]))
            else:
                self.warnings.append(f"entry {number} of {owner} is malformed and ignored")
        return tuple(pairs)

    def _flag(self, settings: Mapping[str, Any], key: str) -> bool | None:
        # Only JSON true counts. The reference takes the string "false" for true.
        value = settings.get(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self._ignored(key, "true or false")
        return None

    def _integer(self, key: str, value: Any) -> int | None:
        if value is not None and not is_integer(value):
            self._ignored(key, "an integer")
            return None
        number: int | None = value
        return number

    def _ignored(self, what: str, expected: str) -> None:
        self.warnings.append(f"{what} is ignored: it is not {expected}")

    def _refuse(self, code: Code, message: str) -> None:
        self.refusal = self.refusal or Refusal(code, message)


def _ascii_of_base64(text: str) -> str | None:
    try:
        # Without `validate`, characters outside the alphabet are skipped.
        return base64.b64decode(text.encode("ascii", "ignore")).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return None
