"""Reads and scrubs the settings file, without decrypting or parsing its content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmsnapshot.handler.files import read_text, write_atomically
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.values import json_object


@dataclass(frozen=True)
class Envelope:
    """The content of a settings file, neither decrypted nor parsed."""

    public: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The public settings, or an empty dict. Not in `repr`: they may contain a token and signatures."""
    protected_text: Secret | None = None
    """The encrypted settings as base64, or `None`."""
    thumbprint: str | None = None
    """The thumbprint of the certificate that they are encrypted for. Not validated."""
    problem: str | None = None
    """Why the file, or a part of it, cannot be used. Contains no values."""


def read_envelope(path: Path) -> Envelope:
    """Reads a settings file. If that fails, the envelope is empty and has a `problem`.

    This never raises, because the job of the file must get a status in any case.
    """
    try:
        content = read_text(path)
    except OSError as error:
        return Envelope(problem=f"the settings file cannot be read: {error.strerror}")
    if content is None:
        return Envelope(problem="there is no settings file")
    if not content:
        # The agent writes an empty file for a handler without settings.
        return Envelope(problem="the settings file is empty")
    document = json_object(content)
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
        problem = "protectedSettings is not a string"
    return Envelope(
        public=public if isinstance(public, dict) else {},
        protected_text=Secret(protected_text) if isinstance(protected_text, str) and protected_text else None,
        thumbprint=thumbprint.strip() if isinstance(thumbprint, str) and thumbprint.strip() else None,
        problem=problem,
    )


def without_protected_settings(text: str) -> str | None:
    """Returns the text of a settings file without ``protectedSettings``, or `None` if it has none."""
    document = json_object(text)
    if document is None:
        return None
    holders = [found for found in _handler_settings(document) if found and "protectedSettings" in found]
    for settings in holders:
        del settings["protectedSettings"]
    try:
        return json.dumps(document) if holders else None
    except RecursionError:
        # A nesting that the parser can just read may be too deep for the writer.
        return None


def scrub(path: Path) -> bool:
    """Removes ``protectedSettings`` from a settings file. Leaves a missing or broken file alone.

    Returns False if the file cannot be read or replaced, for example on a full disk. The caller logs it, and
    the backup goes on.

    The file is replaced, or rewritten in place on a full disk. If the agent writes it at the same moment, it
    writes the same settings again, because the number is the same. Only their protected part can be lost.
    """
    try:
        before = read_text(path)
        text = None if before is None else without_protected_settings(before)
        if text is not None:
            # Mode 0600, because the public part can contain signatures too.
            write_atomically(path, text, 0o600)
    except OSError:
        return False
    return True


def _handler_settings(document: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Returns the handler settings of each element, or `None` for an element without valid ones."""
    elements = document.get("runtimeSettings")
    found = [
        element.get("handlerSettings") if isinstance(element, dict) else None
        for element in (elements if isinstance(elements, list) else [])
    ]
    return [settings if isinstance(settings, dict) else None for settings in found]
