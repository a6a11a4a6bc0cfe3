"""The two status documents, compared with worked examples and with the agent's limits.

``examples/`` has the texts that the reference extension gives to the service and the agent. From the same
facts, our text must be the same, byte for byte.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.report.outcome import TRANSITIONING, Outcome, failed
from vmsnapshot.handler.report.snapshots import DirectDriveIdentifier, SnapshotItem
from vmsnapshot.handler.report.status import (
    FILE_LIMIT_CHARACTERS,
    Sender,
    StatusDocuments,
    StatusReport,
    StorageDetails,
    render,
)
from vmsnapshot.handler.settings.wire import Job

EXAMPLES = Path(__file__).with_name("examples")

MACHINE = (
    ("pythonVersion", "3.10.12"),
    ("platformArchitecture", "64bit"),
    ("guestAgentVersion", "2.15.0.1"),
    ("extensionVersion", "1.0.9184.0"),
    ("osVersion", "Ubuntu-22.04.5 LTS (Jammy Jellyfish)"),
    ("kernelVersion", "6.8.0-1021-azure"),
    ("workloads", "[]"),
    ("prePostEnabled", "False"),
    ("consistencyType", "none"),
)

JOB = Job(task_id="9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22_1", start_ticks="638827848000000000", is_v2=True)


def at(unix_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_ms / 1000, tz=datetime.timezone.utc)


SENDER = Sender(
    handler_name="Microsoft.Azure.RecoveryServices.VMSnapshotLinux",
    schema_version="1.0",
    machine_id="3f0c1a52-7b1e-4d0c-9a55-0d6f2c9be411",
)


def report(
    outcome: Outcome, telemetry: tuple[tuple[str, str], ...], unix_ms: int, **more: Any
) -> StatusReport:
    return StatusReport(
        sender=SENDER,
        job=more.pop("job", JOB),
        outcome=outcome,
        telemetry=telemetry,
        written_at=at(unix_ms),
        **more,
    )


TRANSITIONING_IN_ENABLE = report(TRANSITIONING, MACHINE[2:], 1747188598412)
TRANSITIONING_IN_WORKER = report(
    TRANSITIONING,
    (("hostStatusCodePreSnapshot", "200"), *MACHINE),
    1747188600907,
    storage=StorageDetails(partition_count=3),
)
SUCCESS = report(
    Outcome(
        is_success=True,
        run_code=Code.SUCCESS,
        ext_code=Code.SUCCESS,
        items=(
            SnapshotItem(
                "true",
                snapshot_uri="https://md-osdisk7c.z11.blob.storage.azure.net:443/q1w2e3r4/abcd"
                "?snapshot=2025-05-14T02:10:07.4821190Z",
                blob_uri="https://md-osdisk7c.z11.blob.storage.azure.net:443/q1w2e3r4/abcd",
            ),
            SnapshotItem(
                "true",
                blob_uri="https://md-dd-77aa.z40.disk.storage.azure.net/disks/77aa0c1e-0a0b-4c0d-8e0f-102030405060",
                direct_drive=DirectDriveIdentifier(
                    created_unix_ms=1747188607512,
                    id="5B1D3E70-1111-4222-8333-444455556666",
                    token="opaque-token",  # noqa: S106 (the example's)
                    instant_access_duration_minutes=300,
                ),
            ),
        ),
    ),
    (
        ("hostStatusCodePreSnapshot", "200"),
        ("snapshotCreator", "backupHostService"),
        ("FreezeTime", "0:00:00.412907"),
        ("ThawTime", "0:00:01.001873"),
        ("hostStatusCodeDoSnapshot", "200"),
        ("snapshotTimeTaken", "0:00:02.318040"),
        ("extErrorCode", "success"),
        ("billingType", "none"),
        ("tempDisksSize", "28"),
        ("ramDisksSize", "1520"),
        *MACHINE,
    ),
    1747188612655,
    storage=StorageDetails(partition_count=3, total_used_bytes=9876543488),
)
PARTIAL_FAILURE = report(
    Outcome(
        is_success=False,
        run_code=Code.SNAPSHOT_FAILED_NO_NETWORK,
        ext_code=Code.SNAPSHOT_FAILED_RESTRICTED_NETWORK,
        items=(
            SnapshotItem(
                True,
                snapshot_uri="https://contoso5365.blob.core.windows.net/vhds/os.vhd"
                "?snapshot=2025-05-14T02:10:06.0000000Z",
                error_message="",
                blob_uri="https://contoso5365.blob.core.windows.net/vhds/os.vhd",
            ),
            SnapshotItem(
                False,
                error_message='<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code>'
                "<Message>The server is busy.</Message></Error>",
            ),
        ),
    ),
    (
        ("hostStatusCodePreSnapshot", "404"),
        ("snapshotCreator", "guestExtension"),
        ("FreezeTime", "0:00:00.388112"),
        ("ThawTime", "0:00:01.002110"),
        ("snapshotTimeTaken", "0:00:01.320415"),
        ("extErrorCode", "FailedRetryableSnapshotFailedRestrictedNetwork"),
        ("ramDisksSize", "1520"),
        *MACHINE,
    ),
    1747188609301,
    storage=StorageDetails(partition_count=2, total_used_bytes=3221225472),
)


@pytest.mark.parametrize(
    ("given", "file_name"),
    [
        (TRANSITIONING_IN_WORKER, "transitioning.blob"),
        (SUCCESS, "success.blob"),
        (PARTIAL_FAILURE, "partial-failure.blob"),
    ],
)
def test_blob_report_is_the_example_byte_for_byte(given: StatusReport, file_name: str) -> None:
    assert render(given).blob == (EXAMPLES / file_name).read_text()


@pytest.mark.parametrize(
    ("given", "file_name"),
    [
        (TRANSITIONING_IN_ENABLE, "transitioning-enable.status"),
        (SUCCESS, "success.status"),
        (PARTIAL_FAILURE, "partial-failure.status"),
    ],
)
def test_status_file_is_the_example_byte_for_byte(given: StatusReport, file_name: str) -> None:
    assert render(given).file == (EXAMPLES / file_name).read_text()


def test_classic_vm_shows_a_failed_job_as_an_error() -> None:
    documents = render(replace(PARTIAL_FAILURE, job=replace(JOB, is_v2=False)))
    assert status_of(documents)["status"] == "error"
    v2 = (EXAMPLES / "partial-failure.status").read_text()
    name = '"name": "Microsoft.Azure.RecoveryServices.VMSnapshotLinux", "operation": "Enable", "status": '
    assert documents.file == v2.replace(f'{name}"success"', f'{name}"error"', 1)


def test_status_file_embeds_the_blob_report_unchanged() -> None:
    documents = render(SUCCESS)
    assert status_of(documents)["substatus"][0]["name"] == documents.blob


def test_failed_upload_is_in_the_message() -> None:
    documents = render(replace(SUCCESS, telemetry=(("statusBlobUploadError", "true"), *SUCCESS.telemetry)))
    message = json.loads(status_of(documents)["formattedMessage"]["message"])
    assert message["messageStr"].startswith(
        " statusBlobUploadError=true, snapshotCreator=backupHostService, "
    )


@pytest.mark.parametrize(
    ("outcome", "is_switched_on", "number"),
    [
        (SUCCESS.outcome, False, 0),
        (SUCCESS.outcome, True, 1),
        (replace(SUCCESS.outcome, is_crash_consistent=True), False, 3),
        (replace(SUCCESS.outcome, nothing_was_frozen=True), True, 0),
        (PARTIAL_FAILURE.outcome, True, 0),
        (TRANSITIONING, True, 0),
    ],
)
def test_consistency_number_means_something_only_when_asked(
    outcome: Outcome, is_switched_on: bool, number: int
) -> None:
    sender = replace(SENDER, real_consistency_numbers=is_switched_on)
    documents = render(replace(SUCCESS, outcome=outcome, sender=sender))
    assert json.loads(status_of(documents)["formattedMessage"]["message"])["snapshotConsistency"] == number


def test_text_outside_ascii_is_escaped() -> None:
    documents = render(replace(SUCCESS, outcome=failed(Code.ERROR, "Größe 中 \U0001f4be")))
    assert documents.blob.isascii()
    assert documents.file.isascii()
    message = json.loads(status_of(documents)["formattedMessage"]["message"])
    assert message["messageStr"].startswith("Größe 中 \U0001f4be")


def test_cause_of_a_failure_is_the_job_message_of_both_documents() -> None:
    cause = "could not freeze `/srv/Größe`: device or resource busy"
    documents = render(replace(PARTIAL_FAILURE, outcome=replace(PARTIAL_FAILURE.outcome, cause=cause)))
    without = render(PARTIAL_FAILURE)
    for text, bare in ((documents.blob, without.blob), (documents.file, without.file)):
        shown, usual = (
            json.loads(json.loads(part)[0]["status"]["formattedMessage"]["message"]) for part in (text, bare)
        )
        assert shown == {**usual, "jobMessage": cause}
        assert usual["jobMessage"] == ""


def test_long_cause_is_cut() -> None:
    outcome = replace(PARTIAL_FAILURE.outcome, cause="中" * 100_000)
    documents = render(replace(PARTIAL_FAILURE, outcome=outcome))
    message = json.loads(status_of(documents)["formattedMessage"]["message"])
    assert message["jobMessage"] == "中" * 1024
    assert len(documents.file) < FILE_LIMIT_CHARACTERS


@pytest.mark.parametrize(("cause", "shown"), [("c" * 400, 256), ("\n" * 256 + "c" * 700, 0)])
def test_cause_is_shortened_in_a_small_blob_before_the_messages_of_the_service(
    cause: str, shown: int
) -> None:
    limit_bytes = len(render(PARTIAL_FAILURE).blob) + 300
    outcome = replace(PARTIAL_FAILURE.outcome, cause=cause)
    blob = render(replace(PARTIAL_FAILURE, outcome=outcome), limit_bytes).blob
    assert len(blob) <= limit_bytes
    status = json.loads(blob)[0]["status"]
    assert json.loads(status["formattedMessage"]["message"])["jobMessage"] == cause[:shown]
    messages = [item["errorMessage"] for item in status["snapshotInfo"]]
    assert messages == [item.error_message for item in PARTIAL_FAILURE.outcome.items or ()]


@pytest.mark.parametrize("disks", [1, 33, 64])
@pytest.mark.parametrize("character", ["x", '"', "\\", "中", "/"])
def test_status_file_stays_below_the_limit_whatever_the_service_answers(disks: int, character: str) -> None:
    uri = "https://account.blob.core.windows.net/" + "c" * 150
    items = tuple(SnapshotItem(False, error_message=character * 65536, blob_uri=uri) for _ in range(disks))
    documents = render(replace(PARTIAL_FAILURE, outcome=replace(PARTIAL_FAILURE.outcome, items=items)))
    assert len(documents.file) < FILE_LIMIT_CHARACTERS
    shown = json.loads(documents.blob)[0]["status"]["snapshotInfo"]
    assert [item["blobUri"] for item in shown] == [uri] * disks


def test_status_file_stays_below_the_limit_for_absurd_settings() -> None:
    job = Job(task_id="t" * 500_000, start_ticks=["9" * 500_000])
    outcome = failed(Code.ERROR, "m" * 500_000)
    items = tuple(SnapshotItem(True, snapshot_uri="u" * 5000, blob_uri="u" * 5000) for _ in range(500))
    documents = render(replace(SUCCESS, job=job, outcome=replace(outcome, items=items)))
    assert len(documents.file) < FILE_LIMIT_CHARACTERS
    assert status_of(documents)["code"] == "2"


def status_of(documents: StatusDocuments) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(documents.file)[0]["status"]
    return status
