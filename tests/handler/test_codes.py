"""The names of the codes, and the colour that each gives the VM."""

from __future__ import annotations

import pytest

from vmsnapshot.handler.codes import GREEN, RED, YELLOW, Code

# The reported codes of chapter 4 of the extension's contract. The reference has no states for 556 and 173.
# Theirs are those that the contract asks of a new implementation.
STATES = {
    GREEN: [0, 1, 2, 3, 4, 12, 17, 173],
    YELLOW: [
        11,
        16,
        121,
        122,
        123,
        124,
        300,
        301,
        302,
        303,
        306,
        307,
        308,
        309,
        310,
        311,
        317,
        500,
        501,
        502,
        503,
        505,
        506,
        509,
        510,
    ],
    RED: [76, 85, 402, 556, 761],
}


@pytest.mark.parametrize(("state", "numbers"), STATES.items())
def test_code_gives_the_vm_its_colour(state: int, numbers: list[int]) -> None:
    assert {number: Code(number).health_state for number in numbers} == dict.fromkeys(numbers, state)


def test_no_other_code_is_there() -> None:
    assert sorted(Code) == sorted(number for numbers in STATES.values() for number in numbers)


def test_every_code_has_a_name_of_its_own() -> None:
    names = [code.shown_as for code in Code]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (3, "SuccessAlreadyProcessedInput"),
        (4, "ExtensionTempTerminalState"),
        (76, "FailedRetryableSnapshotFailedNoNetwork"),
        (121, "FailedRetryableFsFreezeFailed"),
        (124, "FailedSafeFreezeBinaryNotFound"),
        (173, "FailedRetryableSnapshotRateExceeded"),
        (0, "success_appconsistent"),
        (300, "FailedPrepostPreScriptFailed"),
        (309, "FailedPrepostPostScriptTimeout"),
        (317, "FailedPrepostPluginConfigPermissionError"),
        (402, "FailedGuestAgentInvokedCommandTooLate"),
        (556, "FailedHostSnapshotRemoteServerError"),
        (761, "FailedRetryableSnapshotFailedRestrictedNetwork"),
    ],
)
def test_code_is_shown_as_the_service_knows_it(number: int, name: str) -> None:
    assert Code(number).shown_as == name
