"""Reads what the owner of the VM has configured: ``/etc/azure/vmbackup.conf`` and ``/etc/waagent.conf``.

A process reads each of them once. Only the polling service reads the first one again for each request.
Reading always returns a value: an invalid option has its default, with a warning for the log. Unlike the
predecessor, which recorded in the first file that it had become sequential, this module writes nothing.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vmsnapshot.handler.files import read_bytes
from vmsnapshot.handler.machine.scripts import (
    SCRIPT_CONFIGURATION,
    ScriptConfiguration,
    read_script_configuration,
)
from vmsnapshot.handler.machine.workload import WORKLOAD_CONFIGURATION, Workload, read_workload
from vmsnapshot.handler.settings.wire import SnapshotMode

VMBACKUP_CONFIGURATION = Path("/etc/azure/vmbackup.conf")

WAAGENT_CONFIGURATIONS = (
    Path("/etc/waagent.conf"),
    Path("/usr/share/defaults/waagent/waagent.conf"),
    Path("/usr/local/etc/waagent.conf"),
)
"""Everywhere, Clear Linux, FreeBSD (azurelinuxagent/common/osutil)."""


THAW_TIMEOUT_SECONDS = 60.0
_THAW_TIMEOUT_LEAST_SECONDS = 0.01
_THAW_TIMEOUT_MOST_SECONDS = 3600.0

_SECTION = "SnapshotThread"

# Options of the predecessor that have no effect here: section, option, and the reason.
_OBSOLETE = (
    (_SECTION, "SafeFreezeWaitInSeconds", "`timeout` limits the freeze as well"),
    (_SECTION, "seqsnapshot", "all snapshots are always requested at once"),
    (_SECTION, "sudo_off", "no command is run through sudo"),
    (_SECTION, "async_event_logging", "events are written when a command ends"),
    (_SECTION, "fsfreeze", "filesystems are always frozen, except those of `MountsToSkip`"),
    (_SECTION, "isanysnapshotfailed", "no state is kept there between backups"),
    (_SECTION, "OnAppSuccessDoFsFreeze", "a database that is held has its filesystems frozen as well"),
    ("lsblkUser", "username", "mounts and disks are read from the kernel, without lsblk"),
    ("Monitor", "Run", "there is no monitor; every backup reports its times"),
    ("Monitor", "Strace", "there is no monitor; every backup reports its times"),
    ("Monitor", "Location", "there is no monitor; every backup reports its times"),
)


@dataclass(frozen=True)
class VmBackupConfiguration:
    """``vmbackup.conf``. Every field has the default that applies without the file."""

    thaw_timeout_seconds: float = THAW_TIMEOUT_SECONDS
    """``timeout``: how long after the first freeze everything is thawed at the latest; 0.01 to 3600."""
    mounts_to_skip: tuple[str, ...] = ()
    """``MountsToSkip``: mount points that are not frozen. ``/`` may be one of them."""
    snapshot_method: SnapshotMode | None = None
    """``SnapshotMethod``: who takes the snapshots, whatever the job says. `None` leaves it to the job."""
    upload_status_and_log: bool = True
    """``UploadStatusAndLog``: whether the status blob and the log blob are read and written."""
    write_log: bool = True
    """``WriteLog``: whether the log is also written to the log folder."""
    discard_lines_while_frozen: bool = False
    """``LoggingOff``: discards the lines that are logged while filesystems are frozen."""
    events_disabled: bool = False
    """``disable_logging``: nothing is written for the agent's telemetry."""
    only_local_filesystems: bool = False
    """``onlyLocalFilesystems``: network shares are not named in the telemetry."""
    real_consistency_numbers: bool = False
    """``RealConsistencyNumbers``, an option of this extension: ``snapshotConsistency`` has its real value, as
    the predecessor intended. Off by default, because the service has only seen 0 and 3."""
    freezes_after_failure: bool = True
    """``OnAppFailureDoFsFreeze``: whether there is a backup although the database could not be held."""
    warnings: tuple[str, ...] = ()
    """Warnings about the file, for the log."""


@dataclass(frozen=True)
class Applications:
    """What the owner has configured for holding applications still."""

    workload: Workload | None = None
    """The database that ``workload.conf`` names."""
    scripts: ScriptConfiguration = field(default_factory=ScriptConfiguration)
    """What is configured for scripts. Without effect if there is a workload (contract 2.2)."""


def read_vmbackup_configuration(path: Path = VMBACKUP_CONFIGURATION) -> VmBackupConfiguration:
    """Reads ``vmbackup.conf``. Never raises: a missing file means defaults, an invalid option a warning."""
    options = _Options(path)
    return VmBackupConfiguration(
        thaw_timeout_seconds=options.thaw_timeout_seconds(),
        mounts_to_skip=options.mounts_to_skip(),
        snapshot_method=options.snapshot_method(),
        upload_status_and_log=options.only_if_true("UploadStatusAndLog"),
        write_log=options.only_if_true("WriteLog"),
        discard_lines_while_frozen=options.number("LoggingOff") == 1,
        events_disabled=options.number("disable_logging") != 0,
        only_local_filesystems=options.switch("onlyLocalFilesystems", default=False),
        real_consistency_numbers=options.switch("RealConsistencyNumbers", default=False),
        freezes_after_failure=options.switch("OnAppFailureDoFsFreeze", default=True),
        warnings=(*options.warnings, *options.obsolete()),
    )


def read_waagent_configuration(path: Path | None = None) -> dict[str, str]:
    """Reads the agent's configuration from the first of its places that exists. Omits unset options.

    Never raises: without a readable file the result is empty. The rules are those of the agent
    (azurelinuxagent/common/conf.py): ``Key=Value``, ``#`` begins a comment, and the last line of a key wins.
    """
    options: dict[str, str] = {}
    for line in _text_of_first(WAAGENT_CONFIGURATIONS if path is None else (path,)).split("\n"):
        key, equals, rest = line.partition("=")
        if line.startswith("#") or not equals:
            continue
        value = rest.partition("#")[0].strip('" \t\r')
        options[key.strip()] = "" if value == "None" else value
    return {key: value for key, value in options.items() if value}


def read_applications(
    workload: Path = WORKLOAD_CONFIGURATION, scripts: Path = SCRIPT_CONFIGURATION
) -> Applications:
    """Reads what the owner has configured for holding applications still. Never raises."""
    database = read_workload(workload)
    if database is not None:
        return Applications(workload=database)
    return Applications(scripts=read_script_configuration(scripts=scripts))


class _Options:
    """The options of ``vmbackup.conf``, and the warnings about them."""

    def __init__(self, path: Path) -> None:
        self.warnings: list[str] = []
        # No interpolation, because a mount point may contain `%`. Not strict: the last of two options wins.
        self._parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            self._parser.read_string(_decoded(read_bytes(path, follows_link=True)))
        except FileNotFoundError:
            return
        except OSError as error:
            cause = (error.strerror or "it is not a file").lower()
            self.warnings.append(f"could not read `{path}`, all options have their defaults: {cause}")
        except configparser.Error:
            # Without the message of the parser, which repeats the file.
            self.warnings.append(f"`{path}` is not an INI file, all options have their defaults")
            self._parser = configparser.ConfigParser(interpolation=None)

    def thaw_timeout_seconds(self) -> float:
        value = self._value("timeout")
        if value is None:
            return THAW_TIMEOUT_SECONDS
        seconds = _number(value)
        if seconds is not None and _THAW_TIMEOUT_LEAST_SECONDS <= seconds <= _THAW_TIMEOUT_MOST_SECONDS:
            return seconds
        self._odd(
            "timeout", value, f"not a number of seconds from 0.01 to 3600; using {THAW_TIMEOUT_SECONDS:g}"
        )
        return THAW_TIMEOUT_SECONDS

    def mounts_to_skip(self) -> tuple[str, ...]:
        # A pattern has a byte that is not UTF-8 as `\xff`, as the plan shows it.
        value = (self._value("MountsToSkip") or "").encode("utf-8", "surrogateescape")
        entries = value.decode("utf-8", "backslashreplace").split(",")
        return tuple(entry.strip() for entry in entries if entry.strip())

    def snapshot_method(self) -> SnapshotMode | None:
        value = self._value("SnapshotMethod")
        if value is None:
            return None
        try:
            return SnapshotMode(value)
        except ValueError:
            known = ", ".join(mode.value for mode in SnapshotMode)
            instead = SnapshotMode.FIRST_HOST_THEN_GUEST
            self._odd("SnapshotMethod", value, f"none of {known}; using {instead.value}")
            return instead

    def only_if_true(self, option: str) -> bool:
        """Reads a switch that every value except ``True`` turns off, such as ``no`` or ``disabled``."""
        value = self._value(option)
        if value is None or value.lower() == "true":
            return True
        if value.lower() != "false":
            self._odd(option, value, "neither True nor False; using False")
        return False

    def switch(self, option: str, *, default: bool) -> bool:
        value = self._value(option)
        if value is None:
            return default
        is_on = configparser.ConfigParser.BOOLEAN_STATES.get(value.lower())
        if is_on is None:
            self._odd(option, value, f"neither true nor false; using {str(default).lower()}")
            return default
        return is_on

    def number(self, option: str) -> float:
        """Reads a switch that is a number. Returns zero if it is not set or not a number."""
        value = self._value(option)
        if value is None:
            return 0
        number = _number(value)
        if number is None:
            self._odd(option, value, "not a number; using 0")
            return 0
        return number

    def obsolete(self) -> list[str]:
        return [
            f"`{option}` in vmbackup.conf has no effect: {instead}"
            for section, option, instead in _OBSOLETE
            if self._parser.get(section, option, fallback="").strip()
        ]

    def _value(self, option: str) -> str | None:
        """Returns the text of the option, or `None` if it is missing or empty: both mean the default."""
        return self._parser.get(_SECTION, option, fallback="").strip() or None

    def _odd(self, option: str, value: str, answer: str) -> None:
        self.warnings.append(f"`{option}` in vmbackup.conf is `{value}`, {answer}")


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _decoded(content: bytes) -> str:
    # As for file names, because a mount point may contain any bytes.
    return content.decode("utf-8-sig", errors="surrogateescape")


def _text_of_first(paths: Iterable[Path]) -> str:
    for path in paths:
        try:
            return _decoded(read_bytes(path, follows_link=True))
        except FileNotFoundError:
            continue
        except OSError:
            break
    return ""
