"""What a single value of the settings' JSON is."""

from __future__ import annotations

import json
import math
from typing import Any


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, if it is one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def usable_text(value: Any) -> str | None:
    """The value if it is a text that a file can hold: JSON can name half a surrogate pair, which none can."""
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; Python counts true and false among them, JSON does not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_scalar(value: Any) -> bool:
    """Whether it can be sent on as it came: JSON knows no NaN, and what is nested has no place there."""
    return (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, float) and math.isfinite(value))
    )
