"""Jobs whose machine cannot be read, or whose engine fails where nothing expects it.

The job runs in this process. Nothing is frozen, because no plan can be made or the attempts are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmsnapshot
from tests.handler.handler_environment import run_job
from tests.handler.settings.settings_of_a_job import OS_URI, SIGNATURE, public
from tests.support.protected_settings import object_str, settings_file_text
from vmsnapshot.errors import PlanError, PrepareError
from vmsnapshot.handler import worker
from vmsnapshot.handler.network import host
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.host import PreSnapshot
from vmsnapshot.handler.report.outcome import Attempt, FreezeResult
from vmsnapshot.handler.report.outcome import Path as Taker
from vmsnapshot.handler.report.snapshots import SnapshotItem

NO_MOUNTS = "could not read `/proc/self/mountinfo`: input/output error"
# Without blobs for the status and the log, so that nothing is uploaded.
PROTECTED = {"objectStr": object_str({"blobSASUri": [OS_URI]})}


class GoodAttempts:
    """Replaces the attempts. The snapshot exists."""

    def __init__(self, *_: object) -> None:
        pass

    def by_guest(self, *_: object, **__: object) -> Attempt:
        item = SnapshotItem(
            True, snapshot_uri="https://h/b?snapshot=t", error_message="", blob_uri="https://h/b"
        )
        return Attempt(Taker.GUEST, FreezeResult.HELD, (item,))


class FailingAttempts(GoodAttempts):
    """Replaces the attempts. The engine raises an error that no caller expects."""

    def by_guest(self, *_: object, **__: object) -> Attempt:
        raise PrepareError(
            f"could not do {OS_URI} now", code="a-code", kind="system", subject="run", hint="do this"
        )


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    """Runs one loop for all jobs."""
    with Background() as running:
        running.warm_up().result()
        yield running


@pytest.fixture
def run(tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a job by the guest, and returns the report in its status file. The mounts cannot be read."""

    def no_machine() -> None:
        raise PlanError(NO_MOUNTS, code="unreadable", kind="system", hint="look at the disk")

    async def no_answer(*_: object, **__: object) -> PreSnapshot:
        return PreSnapshot(host.NO_ANSWER)

    monkeypatch.setattr(vmsnapshot, "machine", no_machine)
    monkeypatch.setattr(host, "pre_snapshot", no_answer)

    def make(**changes: Any) -> Any:
        custom = json.dumps({"takeSnapshotFrom": "onlyGuest"})
        settings = public(**{"commandStartTimeUTCTicks": None, "customSettings": custom, **changes})
        text = settings_file_text(settings, PROTECTED)
        [document] = run_job(tmp_path / "lib/Publisher.VMSnapshotLinux-1.0", text.encode(), background)
        return json.loads(document["status"]["substatus"][0]["name"])[0]["status"]

    return make


def message(report: Any) -> Any:
    """Returns the JSON text of the message."""
    return json.loads(report["formattedMessage"]["message"])


def test_plan_that_cannot_be_made_ends_the_job_with_121_and_its_cause(run: Any) -> None:
    report = run()
    assert (report["code"], report["vmHealthInfo"]["vmHealthStatusCode"]) == ("121", 121)
    assert message(report)["jobMessage"] == (f"could not plan what to freeze: {NO_MOUNTS}; look at the disk")
    assert message(report)["isSizeComputationFailed"] is True


def test_snapshots_are_reported_although_the_mounts_cannot_be_read_after_them(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Attempts", GoodAttempts)
    report = run()
    assert report["code"] == "1"
    assert [item["snapshotUri"] for item in report["snapshotInfo"]] == ["https://h/b?snapshot=t"]
    assert report["storageDetails"] == {
        "partitionCount": 0,
        "totalUsedSizeInBytes": 0,
        "isStoragespacePresent": False,
        "isSizeComputationFailed": True,
    }


@pytest.mark.parametrize(("command", "code"), [("install", "1"), ("dance", "11")])
def test_job_without_snapshots_does_not_need_the_mounts(run: Any, command: str, code: str) -> None:
    assert run(commandToExecute=command)["code"] == code


@pytest.mark.parametrize("command", ["install", "dance"])
@pytest.mark.parametrize(
    ("ticks", "calls"), [(None, 0), ("", 0), ("soon", 1), ("6.36458E+17", 1), (6.36458e17, 1), ("9" * 30, 1)]
)
def test_host_is_asked_for_its_time_if_there_are_ticks_whether_or_not_they_can_be_read(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, ticks: object, calls: int
) -> None:
    asked = []

    async def no_answer(*_: object, **__: object) -> PreSnapshot:
        asked.append(1)
        return PreSnapshot(host.NO_ANSWER)

    monkeypatch.setattr(host, "pre_snapshot", no_answer)
    assert run(commandToExecute=command, commandStartTimeUTCTicks=ticks)["commandStartTimeUTCTicks"] == ticks
    assert len(asked) == calls


def test_unexpected_error_of_the_engine_is_the_cause_without_a_signature(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Attempts", FailingAttempts)
    report = run()
    assert report["code"] == "2"
    assert message(report)["messageStr"].startswith("Enable failed. PrepareError ")
    assert message(report)["jobMessage"] == f"could not do {OS_URI.partition('?')[0]}?... now; do this"
    assert SIGNATURE not in json.dumps(report)
