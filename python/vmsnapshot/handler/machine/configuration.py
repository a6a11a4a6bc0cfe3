"""What the owner of the VM has set: ``/etc/azure/vmbackup.conf``, and the agent's own ``waagent.conf``.

Both are read once a process. Whatever is in them, reading gives a value: what cannot be understood is the
default, with a warning for the log. Nothing is written to them, unlike the predecessor, which noted in the
first one that it had become sequential.
"""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot.handler.settings.wire import SnapshotMode

VMBACKUP_CONFIGURATION = Path("/etc/azure/vmbackup.conf")

WAAGENT_CONFIGURATIONS = (
    Path("/etc/waagent.conf"),
    Path("/usr/share/defaults/waagent/waagent.conf"),
    Path("/usr/local/etc/waagent.conf"),
)
"""Everywhere, Clear Linux, FreeBSD (azurelinuxagent/common/osutil)."""

WORKLOAD_CONFIGURATION = Path("/etc/azure/workload.conf")
SCRIPT_CONFIGURATION = Path("/etc/azure/VMSnapshotScriptPluginConfig.json")
SUPPORTED_WORKLOADS = frozenset({"oracle", "mysql", "mariadb", "postgres"})

THAW_TIMEOUT_SECONDS = 60.0
_THAW_TIMEOUT_LEAST_SECONDS = 0.01
_THAW_TIMEOUT_MOST_SECONDS = 3600.0

_SECTION = "SnapshotThread"

# Options of the predecessor without a meaning here: section, option, and what is in their place.
_OBSOLETE = (
    (_SECTION, "SafeFreezeWaitInSeconds", "`timeout` limits the freeze as well"),
    (_SECTION, "seqsnapshot", "all snapshots are always requested at once"),
    (_SECTION, "sudo_off", "no command is run through sudo"),
    (_SECTION, "async_event_logging", "events are written when a command ends"),
    (_SECTION, "fsfreeze", "filesystems are always frozen, but for `MountsToSkip`"),
    (_SECTION, "isanysnapshotfailed", "nothing is remembered there from one backup to the next"),
    (_SECTION, "OnAppFailureDoFsFreeze", "no application is quiesced, so filesystems are always frozen"),
    (_SECTION, "OnAppSuccessDoFsFreeze", "no application is quiesced, so filesystems are always frozen"),
    ("lsblkUser", "username", "mounts and disks are read from the kernel, without lsblk"),
    ("Monitor", "Run", "there is no monitor; every backup reports its times"),
    ("Monitor", "Strace", "there is no monitor; every backup reports its times"),
    ("Monitor", "Location", "there is no monitor; every backup reports its times"),
)


@dataclass(frozen=True)
class VmBackupConfiguration:
    """``vmbackup.conf``; every field has the default that holds without the file."""

    thaw_timeout_seconds: float = THAW_TIMEOUT_SECONDS
    """``timeout``: how long after the first freeze everything is thawed whatever happens; 0.01 to 3600."""
    mounts_to_skip: tuple[str, ...] = ()
    """``MountsToSkip``: mount points that are not frozen; ``/`` may be one of them."""
    snapshot_method: SnapshotMode | None = None
    """``SnapshotMethod``: who takes the snapshots, whatever the job says; none leaves it to the job."""
    upload_status_and_log: bool = True
    """``UploadStatusAndLog``: whether any status or log blob is touched."""
    write_log: bool = True
    """``WriteLog``: whether the log is also written to the log folder."""
    discard_lines_while_frozen: bool = False
    """``LoggingOff``: what is logged while filesystems are frozen is not kept."""
    events_disabled: bool = False
    """``disable_logging``: nothing is written for the agent's telemetry."""
    only_local_filesystems: bool = False
    """``onlyLocalFilesystems``: network filesystems do not count for the size of the VM."""
    real_consistency_numbers: bool = False
    """``RealConsistencyNumbers``, an option of ours: ``snapshotConsistency`` tells application from
    filesystem consistency, as the predecessor meant to. Off: the service has not seen it so far."""
    warnings: tuple[str, ...] = ()
    """What should be said about the file, for the log: one sentence each."""


@dataclass(frozen=True)
class Applications:
    """What the owner has set up to quiesce applications; this version quiesces none."""

    names_workload: bool = False
    """Whether ``workload.conf`` names a workload that the reference supports."""
    ignored: tuple[str, ...] = ()
    """What is set up and has no effect, in words for the log."""


def read_vmbackup_configuration(path: Path = VMBACKUP_CONFIGURATION) -> VmBackupConfiguration:
    """Reads ``vmbackup.conf``. Never raises: a missing file is all defaults, anything odd a warning."""
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
        warnings=(*options.warnings, *options.obsolete()),
    )


def read_waagent_configuration(path: Path | None = None) -> dict[str, str]:
    """Reads the agent's configuration, from the first of its places that has one; unset options are left out.

    Never raises: without a file, or with one that cannot be read, it is empty. Understood as the agent does
    (azurelinuxagent/common/conf.py): ``Key=Value``, ``#`` begins a comment, the last line of a key wins.
    """
    options: dict[str, str] = {}
    for line in _text_of_first(WAAGENT_CONFIGURATIONS if path is None else (path,)).split("\n"):
        key, equals, rest = line.partition("=")
        if line.startswith("#") or not equals:
            continue
        value = rest.partition("#")[0].strip('" \t\r')
        options[key.strip()] = "" if value == "None" else value
    return {key: value for key, value in options.items() if value}


def workload_name(path: Path = WORKLOAD_CONFIGURATION) -> str:
    """Returns the ``workload_name`` of workload.conf; empty where it names none."""
    for line in _text_of_first([path]).splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "workload_name" and value.strip():
            return value.strip()
    return ""


def read_applications(
    workload: Path = WORKLOAD_CONFIGURATION, scripts: Path = SCRIPT_CONFIGURATION
) -> Applications:
    """Reads what the owner has set up to quiesce applications. Never raises: an unreadable file is none."""
    names_workload = workload_name(workload) in SUPPORTED_WORKLOADS
    ignored = []
    if names_workload:
        ignored.append(f"`{workload}` names a workload")
    if scripts.is_file():
        ignored.append(f"`{scripts}` names scripts")
    return Applications(names_workload, tuple(ignored))


class _Options:
    """The options of ``vmbackup.conf`` and what is odd about them."""

    def __init__(self, path: Path) -> None:
        self.warnings: list[str] = []
        # No interpolation, because a mount point may have a `%`. Not strict: the last of two options wins.
        self._parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            self._parser.read_string(_decoded(path.read_bytes()))
        except FileNotFoundError:
            return
        except OSError as error:
            cause = (error.strerror or "it is not a file").lower()
            self.warnings.append(f"`{path}` could not be read, all options are at their defaults: {cause}")
        except configparser.Error:
            # Not with the parser's words, which repeat the file.
            self.warnings.append(f"`{path}` is no INI file, all options are at their defaults")
            self._parser = configparser.ConfigParser(interpolation=None)

    def thaw_timeout_seconds(self) -> float:
        value = self._value("timeout")
        if value is None:
            return THAW_TIMEOUT_SECONDS
        seconds = _number(value)
        if seconds is not None and _THAW_TIMEOUT_LEAST_SECONDS <= seconds <= _THAW_TIMEOUT_MOST_SECONDS:
            return seconds
        self._odd(
            "timeout", value, f"not a number of seconds from 0.01 to 3600: it is {THAW_TIMEOUT_SECONDS:g}"
        )
        return THAW_TIMEOUT_SECONDS

    def mounts_to_skip(self) -> tuple[str, ...]:
        entries = (self._value("MountsToSkip") or "").split(",")
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
            self._odd("SnapshotMethod", value, f"none of {known}: it is {instead.value}")
            return instead

    def only_if_true(self, option: str) -> bool:
        """A switch that anything but ``True`` turns off: who writes ``no`` or ``disabled`` means it."""
        value = self._value(option)
        if value is None or value.lower() == "true":
            return True
        if value.lower() != "false":
            self._odd(option, value, "neither True nor False: it is False")
        return False

    def switch(self, option: str, *, default: bool) -> bool:
        value = self._value(option)
        if value is None:
            return default
        is_on = configparser.ConfigParser.BOOLEAN_STATES.get(value.lower())
        if is_on is None:
            self._odd(option, value, f"neither true nor false: it is {str(default).lower()}")
            return default
        return is_on

    def number(self, option: str) -> float:
        """A switch that is a number; zero unless it is set to one."""
        value = self._value(option)
        if value is None:
            return 0
        number = _number(value)
        if number is None:
            self._odd(option, value, "not a number: it is 0")
            return 0
        return number

    def obsolete(self) -> list[str]:
        return [
            f"`{option}` in vmbackup.conf has no effect: {instead}"
            for section, option, instead in _OBSOLETE
            if self._parser.get(section, option, fallback="").strip()
        ]

    def _value(self, option: str) -> str | None:
        """The option's text, none if it is missing or empty: an empty value means the default."""
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
    # Like the names of files: a mount point may be any bytes.
    return content.decode("utf-8-sig", errors="surrogateescape")


def _text_of_first(paths: Iterable[Path]) -> str:
    for path in paths:
        try:
            return _decoded(path.read_bytes())
        except FileNotFoundError:
            continue
        except OSError:
            break
    return ""
