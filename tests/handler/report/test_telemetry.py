"""The keys and texts of a report's telemetry, and how it writes a duration."""

from __future__ import annotations

import pytest

from vmsnapshot.handler.report.telemetry import Telemetry, duration_text


def test_a_key_keeps_the_place_where_it_was_first_set_and_the_text_that_was_set_last() -> None:
    telemetry = Telemetry([("consistencyType", "none")])
    telemetry.set("snapshotCreator", "guestExtension")
    telemetry.set("consistencyType", "crashConsistent")
    assert telemetry.pairs() == (
        ("consistencyType", "crashConsistent"),
        ("snapshotCreator", "guestExtension"),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00:00.000000"),
        (0.412907, "0:00:00.412907"),
        (1.0, "0:00:01.000000"),
        (59.9999999, "0:01:00.000000"),
        (3723.5, "1:02:03.500000"),
        (90000.0, "25:00:00.000000"),
        (-5.0, "0:00:00.000000"),
    ],
)
def test_a_duration_has_hours_and_six_digits_and_is_never_negative(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
