"""How an application is named on a command line."""

from __future__ import annotations

import pytest

from vmsnapshot import ArgumentsError, Hook
from vmsnapshot.quiesce.specification import parse


def test_values_of_a_hook_are_read() -> None:
    assert parse("hook:/etc/app.sh") == Hook(program="/etc/app.sh")
    assert parse("hook:/etc/app.sh,optional,name=orders,ready=3,wait=0.5,release=2") == Hook(
        program="/etc/app.sh",
        required=False,
        name="orders",
        ready_seconds=3.0,
        wait_seconds=0.5,
        release_seconds=2.0,
    )
    assert parse("hook:program=/etc/app.sh") == Hook(program="/etc/app.sh")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "`` is none of"),
        ("oracel", "`oracel` is none of hook"),
        ("hook:/a,/b", "`/b` is neither"),
        ("hook:/a,program=/b", "`program` was given twice"),
        ("hook:/a,name=x,name=y", "`name` was given twice"),
        ("hook:/a,colour=red", "`colour` is none of"),
        ("hook:/a,wait=soon", "`wait=soon` is not above 0"),
        ("hook:/a,wait=0", "`wait=0` is not above 0"),
        ("hook:/a,wait=nan", "`wait=nan` is not above 0"),
        ("hook:/a,wait=1e9", "`wait=1e9` is not above 0"),
        ("hook:/a,required=no", "`required` is none of"),
        ("hook:/a,wait_seconds=1", "`wait_seconds` is none of"),
    ],
)
def test_value_that_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(ArgumentsError) as raised:
        parse(text)
    assert raised.value.code == "bad-application"
    assert words in str(raised.value)


def test_labels_are_what_identifies_an_application() -> None:
    assert Hook(program="/etc/vmsnapshot/app.sh").label() == "app.sh"
    assert Hook(program="/etc/vmsnapshot/app.sh", name="orders").label() == "orders"
