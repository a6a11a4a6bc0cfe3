"""The outcome of a job: every row of the contract's table of outcomes that is about snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.report.outcome import (
    Attempt,
    FreezeResult,
    Outcome,
    Path,
    may_be_crash_consistent,
    outcome_of,
)
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.wire import Command, CustomSettings, IncludedDisks, Job, Settings

OK = SnapshotItem(True, "https://h/b?snapshot=t", "", "https://h/b")
BUSY = SnapshotItem(False, error_message="<Message>The server is busy.</Message>", blob_uri="https://h/b")
SILENT = SnapshotItem(False, blob_uri="https://h/b")
RATE = SnapshotItem(False, error_message="... The rate of snapshot blob calls is exceeded ...")
LIMIT = SnapshotItem(False, error_message="The snapshot count against this blob has been exceeded.")
HOST_OK = SnapshotItem("true", "https://h/b?snapshot=t")
HOST_FAILED = SnapshotItem("false", error_message="no")
HOST_FAILED_JSON = SnapshotItem(False, error_message="no")

HELD = FreezeResult.HELD


def guest(freeze: FreezeResult, *items: SnapshotItem) -> Attempt:
    return Attempt(Path.GUEST, freeze, items)


def host(freeze: FreezeResult, *items: SnapshotItem, number: int = 200) -> Attempt:
    return Attempt(Path.HOST, freeze, items, host_number=number, pre_snapshot_was_ok=True)


ROWS = [
    ("file-system consistent, by the guest", guest(HELD, OK, OK), True, 1, 1),
    ("file-system consistent, by the host", host(HELD, HOST_OK, HOST_OK), True, 1, 1),
    ("nothing to freeze", guest(FreezeResult.NOT_WANTED, OK), True, 1, 1),
    ("some disks failed", guest(HELD, OK, BUSY), False, 76, 761),
    ("some disks failed without an answer", guest(HELD, OK, SILENT), False, 76, 761),
    ("some failed, the limit was reached", guest(HELD, OK, LIMIT), False, 85, 85),
    ("some failed, the rate was exceeded", guest(HELD, OK, RATE), False, 173, 173),
    ("some failed by the host, the rate was exceeded", host(HELD, HOST_OK, RATE), False, 173, 173),
    ("the first text counts", guest(HELD, OK, BUSY, RATE, LIMIT), False, 173, 173),
    ("the first text counts, the other way round", guest(HELD, OK, LIMIT, RATE), False, 85, 85),
    ("all disks failed", guest(HELD, BUSY, BUSY), False, 76, 76),
    ("all failed outranks the texts", guest(HELD, RATE, LIMIT), False, 76, 76),
    ("all failed outranks a late thaw", guest(FreezeResult.BROKEN, BUSY, BUSY), False, 76, 76),
    ("no blob URIs", guest(FreezeResult.NOT_TRIED), False, 76, 76),
    ("every item of the host failed", host(HELD, HOST_FAILED, HOST_FAILED), False, 76, 76),
    ("empty answer of the host", host(HELD, number=557), False, 76, 76),
    ("host answered 404", host(HELD, number=404), False, 76, 76),
    ("host not reached", host(FreezeResult.NOT_TRIED, number=555), False, 76, 76),
    ("host answered 500 without its document", host(HELD, number=556), False, 556, 556),
    ("some items of the host are the text false", host(HELD, HOST_OK, HOST_FAILED), False, 76, 761),
    ("some items of the host are JSON false", host(HELD, HOST_OK, HOST_FAILED_JSON), False, 76, 761),
    ("freeze failed", guest(FreezeResult.FAILED), False, 121, 121),
    ("freeze not completed in time", host(FreezeResult.TIMED_OUT), False, 122, 122),
    ("a mount could not be opened", guest(FreezeResult.UNABLE_TO_OPEN), False, 123, 123),
    ("thaw too late, snapshots fine", guest(FreezeResult.BROKEN, OK, OK), False, 2, 2),
    ("thaw too late, some failed for the rate", guest(FreezeResult.BROKEN, OK, RATE), False, 173, 173),
    ("thaw too late, some disks failed", guest(FreezeResult.BROKEN, OK, SILENT), False, 76, 761),
    ("thaw too late, some failed by the host", host(FreezeResult.BROKEN, HOST_OK, HOST_FAILED), False, 2, 2),
]


@pytest.mark.parametrize(
    ("attempt", "is_success", "run_code", "ext_code"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)
def test_attempt_has_the_outcome_of_the_contract(
    attempt: Attempt, is_success: bool, run_code: int, ext_code: int
) -> None:
    outcome = outcome_of(attempt, may_be_crash_consistent=False)
    assert (outcome.is_success, outcome.run_code, outcome.ext_code) == (is_success, run_code, ext_code)
    assert outcome.items == attempt.items
    assert outcome.message == ""
    assert not outcome.is_crash_consistent


def test_server_error_of_a_host_that_was_never_well_is_no_server_error() -> None:
    attempt = replace(host(HELD, number=556), pre_snapshot_was_ok=False)
    assert outcome_of(attempt, may_be_crash_consistent=False).run_code is Code.SNAPSHOT_FAILED_NO_NETWORK


@pytest.mark.parametrize(
    ("freeze", "items", "run_code", "ext_code"),
    [
        (FreezeResult.FAILED, (), 121, 761),
        (FreezeResult.TIMED_OUT, (), 122, 761),
        (FreezeResult.BROKEN, (OK,), 2, 761),
        (HELD, (BUSY,), 76, 76),
        (HELD, (OK, BUSY), 76, 761),
    ],
)
def test_guest_that_stands_in_for_the_host_reports_a_restricted_network(
    freeze: FreezeResult, items: tuple[SnapshotItem, ...], run_code: int, ext_code: int
) -> None:
    attempt = Attempt(Path.GUEST, freeze, items, is_fallback_of_host=True)
    outcome = outcome_of(attempt, may_be_crash_consistent=False)
    assert (outcome.run_code, outcome.ext_code) == (run_code, ext_code)


@pytest.mark.parametrize(
    ("attempt", "ext_code"),
    [
        (guest(FreezeResult.FAILED, OK), 121),
        (guest(FreezeResult.TIMED_OUT, OK), 122),
        (host(FreezeResult.UNABLE_TO_OPEN, HOST_OK), 123),
        (guest(FreezeResult.BROKEN, OK), 1),
    ],
)
def test_crash_consistent_snapshot_is_a_success_where_the_job_allows_it(
    attempt: Attempt, ext_code: int
) -> None:
    outcome = outcome_of(attempt, may_be_crash_consistent=True)
    assert (outcome.is_success, outcome.run_code, outcome.ext_code) == (True, Code.SUCCESS, ext_code)
    assert outcome.is_crash_consistent


@pytest.mark.parametrize(
    "attempt",
    [
        guest(FreezeResult.FAILED),
        guest(FreezeResult.FAILED, BUSY),
        guest(FreezeResult.BROKEN, OK, OK),
        guest(HELD, OK, BUSY),
        guest(FreezeResult.NOT_TRIED),
    ],
)
def test_crash_consistency_takes_exactly_one_good_snapshot(attempt: Attempt) -> None:
    outcome = outcome_of(attempt, may_be_crash_consistent=True)
    assert not outcome.is_success
    assert outcome == outcome_of(attempt, may_be_crash_consistent=False)


def test_good_freeze_is_never_called_crash_consistent() -> None:
    expected = Outcome(True, Code.SUCCESS, Code.SUCCESS, items=(OK,))
    assert outcome_of(guest(HELD, OK), may_be_crash_consistent=True) == expected


ALLOWING = Settings(
    job=Job(),
    command=Command.SNAPSHOT,
    backup_metadata=(),
    snapshot_task_token=Secret(""),
    disks=IncludedDisks(luns=(3,)),
    custom=CustomSettings(is_managed_vm=True, can_take_crash_consistent_snapshot=True, backup_retry_count=1),
)


def test_job_allows_a_crash_consistent_snapshot_when_all_conditions_hold() -> None:
    assert may_be_crash_consistent(ALLOWING)


@pytest.mark.parametrize(
    "settings",
    [
        replace(ALLOWING, disks=IncludedDisks(luns=())),
        replace(ALLOWING, disks=IncludedDisks(luns=(0, -1))),
        replace(ALLOWING, custom=replace(ALLOWING.custom, is_managed_vm=False)),
        replace(ALLOWING, custom=replace(ALLOWING.custom, can_take_crash_consistent_snapshot=None)),
        replace(ALLOWING, custom=replace(ALLOWING.custom, backup_retry_count=0)),
        replace(ALLOWING, custom=replace(ALLOWING.custom, backup_retry_count=None)),
    ],
)
def test_job_allows_no_crash_consistent_snapshot_when_one_condition_fails(settings: Settings) -> None:
    assert not may_be_crash_consistent(settings)
