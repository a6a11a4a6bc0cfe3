"""Reads what the owner has configured for the pre- and post-script. Chapters 8.1 and 8.2 of the contract.

Two files count. ``VMSnapshotPluginHost.conf`` names the script configuration; without it, the usual one
counts. The script configuration is JSON. Both must belong to root, and other users must not be able to change
them, because they name what root runs.

This version runs no scripts. It reads only whether the owner wants a freeze.
"""

from __future__ import annotations

import configparser
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot.handler.files import open_existing, read_limited
from vmsnapshot.handler.settings.values import json_object
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


@dataclass(frozen=True)
class ScriptConfiguration:
    """What the owner has configured. Every field has the value that applies without the files."""

    path: Path | None = None
    """The script configuration, if it could be read."""
    wants_freeze: bool = True
    """``fsFreezeEnabled``: whether filesystems are frozen."""
    warnings: tuple[str, ...] = ()
    """Why a file is ignored, for the log."""


def read_script_configuration(
    plugin_host: Path = PLUGIN_HOST_CONFIGURATION, scripts: Path = SCRIPT_CONFIGURATION
) -> ScriptConfiguration:
    """Reads both files. Never raises: a missing file is the usual case, a bad one is ignored with a warning.

    `scripts` is the script configuration that counts if there is no `plugin_host`.
    """
    try:
        text = _text_of(plugin_host, _PLUGIN_HOST_MODE)
        path = scripts if text is None else _script_path(text, plugin_host)
        text = None if path is None else _text_of(path, _SCRIPT_MODE)
        if path is None or text is None:
            return ScriptConfiguration()
        document = json_object(text)
        if document is None:
            raise _IgnoredError(path, "it is not a JSON object")
    except _IgnoredError as error:
        return ScriptConfiguration(warnings=(str(error),))
    # The wish counts even if a key that the scripts need is missing.
    wish = document.get("fsFreezeEnabled")
    return ScriptConfiguration(path, wish is None or is_true(wish))


class _IgnoredError(Exception):
    """A file does not count."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"`{path}` is ignored: {cause}")


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
                raise _IgnoredError(path, f"it belongs to user {status.st_uid}; make root its owner")
            permissions = stat.S_IMODE(status.st_mode)
            if permissions & ~mode:
                raise _IgnoredError(path, f"its permissions are {permissions:o}; change them to {0o600:o}")
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


def _script_path(text: str, plugin_host: Path) -> Path | None:
    """Returns the script configuration that the plugin host names, or `None` if it names none."""
    # No interpolation, because a path may contain `%`.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        count = min(parser.getint(_SECTION, "numberOfPlugins", fallback=0), _PLUGINS_MOST)
        for index in range(count):
            if parser.get(_SECTION, f"pluginName{index}").strip() == _PLUGIN:
                return Path(parser.get(_SECTION, f"pluginConfigPath{index}").strip())
    except (configparser.Error, ValueError):
        # Without the message of the parser, which repeats the file.
        raise _IgnoredError(plugin_host, "it is not INI with the options of each plugin") from None
    return None
