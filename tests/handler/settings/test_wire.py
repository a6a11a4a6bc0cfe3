"""The settings that have to be converted: instants and flags."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from vmsnapshot.handler.settings.wire import instant_of_ticks, is_true


@pytest.mark.parametrize(
    ("ticks", "instant"),
    [
        ("638827848000000000", datetime.datetime(2025, 5, 14, 2, tzinfo=datetime.timezone.utc)),
        (638827848000000000, datetime.datetime(2025, 5, 14, 2, tzinfo=datetime.timezone.utc)),
        (" 638827848000000010 ", datetime.datetime(2025, 5, 14, 2, 0, 0, 1, tzinfo=datetime.timezone.utc)),
        ("0", datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc)),
        (
            "3155378975999999999",
            datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.timezone.utc),
        ),
        ("3155378976000000000", None),
        ("9" * 33, None),
        (10**400, None),
        ("-1", None),
        (-1, None),
        ("+1", None),
        ("1_0", None),
        ("٣", None),
        ("", None),
        (None, None),
        (True, None),
        ("6.36458E+17", None),
        (6.36458e17, None),
        (float("nan"), None),
        ([1], None),
    ],
)
def test_ticks_are_whole_numbers_since_the_year_1_or_none(ticks: Any, instant: Any) -> None:
    assert instant_of_ticks(ticks) == instant


@pytest.mark.parametrize("value", [True, 1, "true", "True", "yes", "1"])
def test_is_true_takes_texts_that_say_so(value: Any) -> None:
    assert is_true(value)


@pytest.mark.parametrize("value", [False, 0, None, "", "false", " FALSE ", "0", "no", "None", "null"])
def test_is_true_takes_false_as_text_for_false(value: Any) -> None:
    assert not is_true(value)
