"""The settings file: what it holds before anything in it is decrypted or understood."""

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
    """What a settings file holds, before anything in it is decrypted or understood."""

    public: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The public settings; empty when there are none. Not shown: they can hold a token and signatures."""
    protected_text: Secret | None = None
    """The encrypted settings, base64; there may be none."""
    thumbprint: str | None = None
    """Names the certificate they are encrypted for, unchecked."""
    problem: str | None = None
    """Why the file, or a part of it, cannot be used; without values."""


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
        problem = "protectedSettings is not a text"
    return Envelope(
        public=public if isinstance(public, dict) else {},
        protected_text=Secret(protected_text) if isinstance(protected_text, str) and protected_text else None,
        thumbprint=thumbprint.strip() if isinstance(thumbprint, str) and thumbprint.strip() else None,
        problem=problem,
    )


def without_protected_settings(text: str) -> str | None:
    """Returns a settings file's text without ``protectedSettings``; none where it has none to be found."""
    document = json_object(text)
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


def _handler_settings(document: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The handler settings of each element; none for an element that has none to be understood."""
    elements = document.get("runtimeSettings")
    found = [
        element.get("handlerSettings") if isinstance(element, dict) else None
        for element in (elements if isinstance(elements, list) else [])
    ]
    return [settings if isinstance(settings, dict) else None for settings in found]
