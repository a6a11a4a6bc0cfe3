"""How people name an application on a command line: ``KIND``, or ``KIND:ARGUMENT,KEY=VALUE,optional``."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from vmsnapshot.errors import ArgumentsError
from vmsnapshot.quiesce.applications import Application, Scripts
from vmsnapshot.quiesce.kinds import CLASSES

# Longer than any hold.
LIMIT_MAX_SECONDS = 3600.0
# What every kind has, under the names that people write.
_LIMITS = {"ready": "ready_seconds", "wait": "wait_seconds", "release": "release_seconds"}
# What only some kinds have.
_SECONDS = {"long_statement": "long_statement_seconds"}


def parse(text: str) -> Application:
    """Returns the application that `text` names. Raises `ArgumentsError`."""
    kind, _, rest = text.partition(":")
    named = {name: of_kind for name, of_kind in CLASSES.items() if of_kind is not Scripts}
    if kind not in named:
        raise _error(text, f"is none of {', '.join(sorted(named))}", what=kind)
    of_kind = named[kind]
    # What is not text cannot be written in one value.
    texts = {item.name for item in fields(of_kind) if not str(item.type).startswith("tuple")}
    own = texts - {item.name for item in fields(Application)}
    seconds = {**_LIMITS, **{key: name for key, name in _SECONDS.items() if name in own}}
    known = own - set(seconds.values()) | {"name"}
    values: dict[str, Any] = {}
    for number, part in enumerate(part for part in rest.split(",") if part):
        key, equals, value = part.partition("=")
        if part == "optional":
            values["required"] = False
        elif not equals and number == 0 and of_kind.argument:
            values[of_kind.argument] = part
        elif not equals:
            raise _error(text, "is neither `optional` nor KEY=VALUE", what=part)
        elif key in seconds:
            values[seconds[key]] = _seconds(text, part, value)
        elif value not in of_kind.choices.get(key, (value,)):
            raise _error(text, f"is none of {', '.join(of_kind.choices[key])}", what=value)
        elif key in known and key not in values:
            values[key] = value
        else:
            why = (
                "was given twice"
                if key in values
                else f"is none of {', '.join(sorted(known | set(seconds)))}"
            )
            raise _error(text, why, what=key)
    return of_kind(**values)


def _seconds(text: str, part: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= LIMIT_MAX_SECONDS:
        raise _error(text, "is not above 0 and at most 3600 seconds", what=part)
    return seconds


def _error(text: str, why: str, *, what: str) -> ArgumentsError:
    return ArgumentsError(
        f"the application `{text}`: `{what}` {why}",
        code="bad-application",
        hint="for example `--quiesce hook:/etc/vmsnapshot/app.sh,wait=3`",
    )
