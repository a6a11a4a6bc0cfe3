"""Reads what the owner has configured for pre- and post-scripts, and checks both. Contract, chapter 8.

Two files count. ``VMSnapshotPluginHost.conf`` names the script configuration; without it, the usual one
counts. The script configuration is JSON. Both, and the scripts, must belong to root, and other users must not
be able to change them, because root runs them.
"""

from __future__ import annotations

import configparser
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnapshot import Scripts
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.files import open_existing, read_limited
from vmsnapshot.handler.settings.values import is_integer, json_object, usable_text
from vmsnapshot.handler.settings.wire import is_true

PLUGIN_HOST_CONFIGURATION = Path("/etc/azure/VMSnapshotPluginHost.conf")
SCRIPT_CONFIGURATION = Path("/etc/azure/VMSnapshotScriptPluginConfig.json")

_SECTION = "pre_post"
_PLUGIN = "ScriptRunner"
# More is a mistake, or an attempt to keep this process busy.
_PLUGINS_MOST = 64

# The permissions that a file may have: the plugin host's configuration may be read by all users.
_PLUGIN_HOST_MODE = 0o744
_SCRIPT_MODE = 0o600

# The limits of the contract: for a script with all its tries, and what the plugin host allows at most.
_SECONDS = 10
_LIMIT_MAX_SECONDS = 1800.0
_RETRIES_MOST = 100
_OPTIONS = frozenset(
    {
        "appName",
        "continueBackupOnFailure",
        "fsFreezeEnabled",
        "pluginName",
        "postScriptLocation",
        "postScriptNoOfRetries",
        "postScriptParams",
        "preScriptLocation",
        "preScriptNoOfRetries",
        "preScriptParams",
        "ScriptsExecutionPollTimeSeconds",
        "timeoutInSeconds",
    }
)
# For each script: it is not there, and its owner or permissions are wrong.
_PROBLEMS = (
    (Code.PRE_SCRIPT_NOT_FOUND, Code.PRE_SCRIPT_PERMISSION),
    (Code.POST_SCRIPT_NOT_FOUND, Code.POST_SCRIPT_PERMISSION),
)


@dataclass(frozen=True)
class ScriptConfiguration:
    """What the owner has configured. Every field has the value that applies without the files."""

    path: Path | None = None
    """The script configuration, if it could be read."""
    wants_freeze: bool = True
    """``fsFreezeEnabled``: whether filesystems are frozen."""
    plugin_name: str = _PLUGIN
    """``pluginName``, for the messages."""
    continues_on_failure: bool = True
    """``continueBackupOnFailure``: whether there is a backup if the scripts fail."""
    scripts: Scripts | None = None
    """The scripts to run. `None` if none are configured, or if `problem` says why they cannot be run."""
    problem: Code | None = None
    """Why configured scripts cannot be run."""
    warnings: tuple[str, ...] = ()
    """Why a file or a value is ignored, for the log."""

    @property
    def are_configured(self) -> bool:
        """Whether the owner has configured scripts, whether or not they can be run (contract 8.4)."""
        return self.scripts is not None or self.problem is not None


def read_script_configuration(
    plugin_host: Path = PLUGIN_HOST_CONFIGURATION, scripts: Path = SCRIPT_CONFIGURATION
) -> ScriptConfiguration:
    """Reads both files. Never raises: a missing file is the usual case, a bad one is ignored with a warning.

    `scripts` is the script configuration that counts if there is no `plugin_host`.
    """
    try:
        text = _text_of(plugin_host, _PLUGIN_HOST_MODE)
        path, limit_seconds = scripts, _LIMIT_MAX_SECONDS
        if text is not None:
            named, limit_seconds = _plugin_of(text, plugin_host)
            if named is None:
                return ScriptConfiguration()
            path = named
    except _IgnoredError as error:
        return ScriptConfiguration(warnings=(str(error),))
    try:
        text = _text_of(path, _SCRIPT_MODE)
        if text is None:
            return ScriptConfiguration()
        document = json_object(text)
        if document is None:
            raise _IgnoredError(path, "it is not a JSON object")
    except _IgnoredError as error:
        problem = Code.SCRIPT_CONFIGURATION_PERMISSION if error.is_permission else None
        return ScriptConfiguration(problem=problem, warnings=(str(error),))
    return _Document(path, document, limit_seconds).configuration()


class _Document:
    """The content of the script configuration."""

    def __init__(self, path: Path, document: dict[str, Any], limit_seconds: float) -> None:
        self._path = path
        self._document = document
        self._limit_seconds = limit_seconds
        self._warnings = [
            f"`{path}`: there is no option `{name}`" for name in document if name not in _OPTIONS
        ]

    def configuration(self) -> ScriptConfiguration:
        # This wish counts even if a key that the scripts need is missing.
        wants_freeze = self._flag("fsFreezeEnabled")
        continues = self._flag("continueBackupOnFailure")
        name = usable_text(self._document.get("pluginName")) or _PLUGIN
        scripts, problem = None, None
        places = [usable_text(self._document.get(f"{phase}ScriptLocation")) for phase in ("pre", "post")]
        if all(places):
            seconds = self._seconds()
            problem = next(filter(None, (_problem_of(*both) for both in zip(places, _PROBLEMS))), None)
            scripts = Scripts(
                name=name,
                required=not (continues and wants_freeze),
                wait_seconds=seconds,
                release_seconds=seconds,
                before=str(places[0]),
                before_arguments=self._arguments("pre"),
                before_tries=self._tries("pre"),
                after=str(places[1]),
                after_arguments=self._arguments("post"),
                after_tries=self._tries("post"),
            )
        else:
            self._warn("it names no preScriptLocation, or no postScriptLocation, so no script is run")
        return ScriptConfiguration(
            self._path,
            wants_freeze,
            name,
            continues,
            None if problem else scripts,
            problem,
            tuple(self._warnings),
        )

    def _warn(self, text: str) -> None:
        self._warnings.append(f"`{self._path}`: {text}")

    def _flag(self, name: str) -> bool:
        value = self._document.get(name)
        return value is None or is_true(value)

    def _seconds(self) -> float:
        value = self._document.get("timeoutInSeconds", _SECONDS)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            self._warn(f"timeoutInSeconds is not a number above 0; {_SECONDS} counts")
            value = _SECONDS
        return min(float(value), self._limit_seconds)

    def _tries(self, phase: str) -> int:
        value = self._document.get(f"{phase}ScriptNoOfRetries", 0)
        if not is_integer(value) or not 0 <= value <= _RETRIES_MOST:
            self._warn(f"{phase}ScriptNoOfRetries is not a number from 0 to {_RETRIES_MOST}; 0 counts")
            value = 0
        return 1 + int(value)

    def _arguments(self, phase: str) -> tuple[str, ...]:
        value = self._document.get(f"{phase}ScriptParams", [])
        if not isinstance(value, list):
            self._warn(f"{phase}ScriptParams is not a list, so no argument is passed")
            return ()
        return tuple(item if isinstance(item, str) else json.dumps(item) for item in value)


def _problem_of(place: str | None, problems: tuple[Code, Code]) -> Code | None:
    """Returns why a script cannot be run: it is not there, or not only root can read and change it."""
    not_found, permission = problems
    try:
        status = Path(str(place)).stat()
    except (OSError, ValueError):
        return not_found
    if not stat.S_ISREG(status.st_mode):
        return not_found
    is_roots_alone = status.st_uid == 0 and not stat.S_IMODE(status.st_mode) & 0o077
    return None if is_roots_alone else permission


class _IgnoredError(Exception):
    """A file does not count, perhaps because of its owner or permissions."""

    def __init__(self, path: Path, cause: str, *, is_permission: bool = False) -> None:
        super().__init__(f"`{path}` is ignored: {cause}")
        self.is_permission = is_permission


def _text_of(path: Path, mode: int) -> str | None:
    """Returns the content of a file that only root can change, or `None` if there is no file.

    Raises:
        _IgnoredError: it cannot be read, or its owner or permissions are wrong.
    """
    try:
        with os.fdopen(open_existing(path, os.O_RDONLY, follows_link=True), "rb") as file:
            # Owner and mode are those of the file that is read.
            status = os.fstat(file.fileno())
            if status.st_uid != 0:
                owner = f"it belongs to user {status.st_uid}; make root its owner"
                raise _IgnoredError(path, owner, is_permission=True)
            permissions = stat.S_IMODE(status.st_mode)
            if permissions & ~mode:
                wrong = f"its permissions are {permissions:o}; change them to {0o600:o}"
                raise _IgnoredError(path, wrong, is_permission=True)
            content = read_limited(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _IgnoredError(path, f"it cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise _IgnoredError(path, "no file can have this name") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _IgnoredError(path, "it is not a text") from None


def _plugin_of(text: str, plugin_host: Path) -> tuple[Path | None, float]:
    """Returns the script configuration that the plugin host names, or `None`, and the limit for scripts."""
    # No interpolation, because a path may contain `%`.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        limit_seconds = parser.getfloat(_SECTION, "timeoutInSeconds", fallback=_LIMIT_MAX_SECONDS)
        if not 0 < limit_seconds < _LIMIT_MAX_SECONDS:
            limit_seconds = _LIMIT_MAX_SECONDS
        count = min(parser.getint(_SECTION, "numberOfPlugins", fallback=0), _PLUGINS_MOST)
        for index in range(count):
            if parser.get(_SECTION, f"pluginName{index}").strip() == _PLUGIN:
                return Path(parser.get(_SECTION, f"pluginConfigPath{index}").strip()), limit_seconds
    except (configparser.Error, ValueError):
        # Without the message of the parser, which repeats the file.
        raise _IgnoredError(plugin_host, "it is not INI with the options of each plugin") from None
    return None, limit_seconds
