"""Finds the directories of the handler, and the job of a command: HandlerEnvironment.json, sequence number.

This module only reads. ``settings`` reads and parses the settings file.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from vmsnapshot.errors import VmsnapshotError
from vmsnapshot.handler.files import read_bytes

FILE_NAME = "HandlerEnvironment.json"
MENDED_NUMBERS = "VMSNAPSHOT_MENDED_NUMBERS"
"""The variable by which a command passes sequence numbers to the process that mends reports."""

# The agent rewrites the file in place each time that it starts (open, truncate, write). That takes far less
# than this second.
_ATTEMPTS = 6
_PAUSE_SECONDS = 0.2

# Old agents pass -1 for "none", so a sign is not accepted. The limit on digits keeps the file name short.
_SEQUENCE_NUMBER = re.compile(r"[0-9]{1,18}")


class HandlerEnvironmentError(VmsnapshotError):
    """HandlerEnvironment.json is missing or invalid."""


@dataclass(frozen=True)
class JobFiles:
    """The two files of one job."""

    settings: Path
    """The agent writes this file."""
    status: Path
    """The handler writes this file."""

    def are_put_aside(self) -> bool:
        """Returns whether a newer command has renamed both, so that the agent ignores them."""
        return not self.status.exists() and not self.settings.exists()


@dataclass(frozen=True)
class HandlerEnvironment:
    """What the agent has written about this handler. Every path is absolute."""

    name: str
    """The full name of the handler. Statuses repeat it."""
    schema_version: str
    """The version of the file format, "1.0". Not the version of the extension."""
    log_folder: Path
    config_folder: Path
    status_folder: Path
    events_folder: Path | None
    """`None` if the agent does not collect events."""
    base_directory: Path
    """The directory of this version of the extension."""
    lib_directory: Path
    """The directory of the agent. It contains the certificates."""

    def files_of(self, number: int) -> JobFiles:
        """Returns the files of the job with this sequence number."""
        return JobFiles(self.config_folder / f"{number}.settings", self.status_folder / f"{number}.status")


def find_base_directory(environ: Mapping[str, str]) -> Path:
    """Returns the extension's directory: the current one if it is one, or the one in the agent's variable."""
    named = environ.get("AZURE_GUEST_AGENT_EXTENSION_PATH")
    try:
        current = Path.cwd()
    except OSError:
        # It was deleted, or lies below a directory that cannot be read.
        current = Path("/")
    return Path(named) if named and not (current / FILE_NAME).exists() else current


def read_environment(
    base_directory: Path, *, pause: Callable[[float], None] = time.sleep
) -> HandlerEnvironment:
    """Reads HandlerEnvironment.json in the directory of an extension.

    Raises:
        HandlerEnvironmentError: the file is missing, is not JSON, or lacks a name or a folder.

    Blocking: one second at most, while the file is not valid JSON. `pause` waits.
    """
    base = base_directory.absolute()
    file = base / FILE_NAME
    document = _parsed(file)
    for _ in range(_ATTEMPTS - 1):
        if document is not None:
            break
        pause(_PAUSE_SECONDS)
        document = _parsed(file)
    if document is None:
        raise HandlerEnvironmentError(
            f"could not read `{file}`: it is not JSON", code="environment-not-json", kind="system"
        )
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict) or not isinstance(document.get("handlerEnvironment"), dict):
        raise HandlerEnvironmentError(
            f"could not use `{file}`: it describes no handler environment",
            code="environment-incomplete",
            kind="system",
        )
    folders = document["handlerEnvironment"]
    events = folders.get("eventsFolder")
    return HandlerEnvironment(
        name=_required(document, "name", file),
        schema_version=_schema_version(document.get("version")),
        # Absolute, because the current directory of the worker is `/`.
        log_folder=base / _required(folders, "logFolder", file),
        config_folder=base / _required(folders, "configFolder", file),
        status_folder=base / _required(folders, "statusFolder", file),
        events_folder=base / events if _is_usable(events) else None,
        base_directory=base,
        lib_directory=base.parent,
    )


def assumed_environment(base_directory: Path) -> HandlerEnvironment:
    """Returns the usual environment of every agent, for use when its file cannot be read.

    A command that gave up instead would leave its job without a status.
    """
    base = base_directory.absolute()
    name = base.name.rpartition("-")[0] or base.name
    return HandlerEnvironment(
        name=name,
        schema_version="1.0",
        log_folder=Path("/var/log/azure") / name,
        config_folder=base / "config",
        status_folder=base / "status",
        events_folder=None,
        base_directory=base,
        lib_directory=base.parent,
    )


def sequence_number(environment: HandlerEnvironment, environ: Mapping[str, str]) -> int | None:
    """Returns the sequence number of the job of this command, or `None`.

    It is ``ConfigSequenceNumber``. Old agents do not set that. Then it is the number of the newest settings
    file, as for the agent itself, because numbers do not always increase.
    """
    given = environ.get("ConfigSequenceNumber", "").strip()
    if _SEQUENCE_NUMBER.fullmatch(given):
        return int(given)
    numbered = [
        (_modified_ns(file), int(file.stem))
        for file in environment.config_folder.glob("*.settings")
        if _SEQUENCE_NUMBER.fullmatch(file.stem)
    ]
    return max(numbered)[1] if numbered else None


def mended_numbers(environ: Mapping[str, str]) -> list[int]:
    """Returns the sequence numbers of the jobs whose reports this process has to mend."""
    return [int(number) for number in environ[MENDED_NUMBERS].split(",")]


def _parsed(file: Path) -> Any | None:
    try:
        content = read_bytes(file)
    except OSError as error:
        raise HandlerEnvironmentError(
            f"could not read `{file}`: {(error.strerror or 'it cannot be opened').lower()}",
            code="environment-unreadable",
            kind="system",
        ) from error
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _modified_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        # The file was renamed after it was listed. Treat it as the oldest.
        return 0


def _required(mapping: Mapping[str, Any], key: str, file: Path) -> str:
    value = mapping.get(key)
    if not _is_usable(value):
        raise HandlerEnvironmentError(
            f"could not use `{file}`: it has no {key}", code="environment-incomplete", kind="system"
        )
    return str(value)


def _is_usable(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _schema_version(value: Any) -> str:
    # The agent writes the number 1.0.
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    return value if isinstance(value, str) and value else "1.0"
