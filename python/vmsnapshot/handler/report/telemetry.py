"""The additional part of a report: ``telemetryData``, a list of keys and texts."""

from __future__ import annotations

from collections.abc import Iterable


class Telemetry:
    """Keys and texts, in the order in which the keys were first set. Setting one again replaces its text."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._texts = dict(pairs)

    def set(self, key: str, text: str) -> None:
        """Sets `key`."""
        self._texts[key] = text

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Returns keys and texts."""
        return tuple(self._texts.items())


def duration_text(seconds: float) -> str:
    """Returns a duration as ``H:MM:SS.ffffff``: always six digits, no days, and never below zero."""
    whole_seconds, microseconds = divmod(max(round(seconds * 1_000_000), 0), 1_000_000)
    minutes, whole_seconds = divmod(whole_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_seconds:02}.{microseconds:06}"
