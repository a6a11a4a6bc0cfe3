"""Parses JSON objects, and checks single values of the settings' JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """Parses `text`. Returns `None` if it is not a JSON object.

    Bytes are UTF-8, with or without a byte order mark.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def usable_text(value: Any) -> str | None:
    """Returns the value if it is a string that UTF-8 can encode. JSON strings may have lone surrogates."""
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def is_integer(value: Any) -> bool:
    """Returns whether the value is a JSON integer. Python counts `True` and `False` among integers."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_scalar(value: Any) -> bool:
    """Returns whether the value can be forwarded unchanged: it is not nested, and it is not NaN."""
    return (
        value is None
        or isinstance(value, (bool, int, str))
        or (isinstance(value, float) and math.isfinite(value))
    )
