"""Requests to the host, and how its answers are read."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from tests.support.host_service import NEVER_MS, USUAL, Answer, HostService, json_answer
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.host import (
    EncryptionDetails,
    PreSnapshot,
    do_snapshot_call,
    host_address,
    pre_snapshot,
    read_do_snapshot_answer,
)
from vmsnapshot.handler.report.snapshots import DirectDriveIdentifier, SnapshotItem
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.wire import (
    Command,
    CustomSettings,
    DynamicConfigs,
    IncludedDisks,
    Job,
    Pair,
    Settings,
)

OPAQUE = "opaque-task-token"
OS_URI = "https://md-osdisk7c.z11.blob.storage.azure.net:443/q1w2e3r4/abcd"
DIRECT_URI = "https://md-dd-77aa.z40.disk.storage.azure.net/disks/77aa0c1e-0a0b-4c0d-8e0f-102030405060"
ENCRYPTION = {
    "isOsDiskADEEncrypted": "true",
    "areDataDisksADEEncrypted": False,
    "DiskEncryptionSettings": "vault settings",
}


def ask(address: str, *, details: bool | None = None, limit_seconds: float = 10.0) -> PreSnapshot:
    with Background() as background:
        asking = pre_snapshot(
            background.session,
            address,
            task_id="BT-1",
            token=Secret(OPAQUE),
            details=details,
            limit_seconds=limit_seconds,
        )
        return background.submit(asking).result(timeout=30)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "job": Job(task_id="T-1"),
        "command": Command.SNAPSHOT,
        "backup_metadata": (Pair("RecoveryPointId", "123"),),
        "snapshot_task_token": Secret(OPAQUE),
        "disks": IncludedDisks(luns=(0, 3, -1), instant_access_duration_minutes=120),
        "dynamic_configs": DynamicConfigs(True, False, "false", False, True),
        "custom": CustomSettings(backup_task_id="BT-1"),
    }
    return Settings(**{**values, **changes})


def answer_of(*entries: Any, status: int = 200) -> tuple[SnapshotItem, ...]:
    answer = read_do_snapshot_answer(status, json.dumps({"snapshotInfo": entries}).encode())
    assert (answer.telemetry_status, answer.error) == (status, None)
    return answer.items


def entry(**changes: Any) -> dict[str, Any]:
    usual = {
        "isSuccessful": "true",
        "snapshotUri": f"{OS_URI}?snapshot=2025-05-14T02:10:07.4821190Z",
        "errorMessage": None,
        "statusCode": 200,
    }
    return {**usual, **changes}


def direct_entry(creation_time: Any) -> dict[str, Any]:
    return entry(
        snapshotUri=f"{DIRECT_URI}/snapshots?snapshotId=5B1D",
        ddSnapshotIdentifier={
            "creationTime": creation_time,
            "id": "5B1D",
            "token": "opaque-disk-token",
            "instantAccessDurationMinutes": 300,
        },
    )


# The address.


def test_host_is_the_platforms_address_unless_the_agent_names_another() -> None:
    variable = "AZURE_GUEST_AGENT_WIRE_PROTOCOL_ADDRESS"
    assert host_address({}) == "168.63.129.16"
    assert host_address({variable: ""}) == "168.63.129.16"
    assert host_address({variable: "10.0.0.4"}) == "10.0.0.4"
    assert host_address({variable: "127.0.0.1:8080"}) == "127.0.0.1:8080"
    assert host_address({variable: "evil.example/path?"}) == "168.63.129.16"


# PreSnapshot.


def test_pre_snapshot_is_sent_as_the_contract_says(service: HostService) -> None:
    assert ask(service.address).is_ok
    (request,) = service.requests()
    assert request.method == "POST"
    assert request.path == "/metadata/recsvc/snapshot/presnapshot"
    assert request.query == {"api-version": "2017-12-01"}
    assert request.body == b'{"taskId": "BT-1", "snapshotTaskToken": "opaque-task-token"}'
    assert sorted(request.headers) == [
        ("Backup", "true"),
        ("Content-Length", str(len(request.body))),
        ("Content-type", "application/json"),
        ("Host", service.address),
        ("UserAgent", "VMSnapshot"),
    ]


@pytest.mark.parametrize("details", [True, False])
def test_details_are_asked_for_with_what_the_job_says(service: HostService, details: bool) -> None:
    ask(service.address, details=details)
    (request,) = service.requests()
    assert request.json["preSnapshotSettings"] == [{"Key": "isVMADEEnabled", "Value": details}]


def test_hosts_clock_is_read(service: HostService) -> None:
    clock = {"year": 2025, "month": 5, "day": 14, "hour": 2, "minute": 9, "second": 58}
    service.script("presnapshot", json_answer({"responseTime": clock}, 201))
    answer = ask(service.address)
    assert answer.telemetry_status == 201
    assert answer.is_ok
    expected = datetime.datetime(2025, 5, 14, 2, 9, 58, tzinfo=datetime.timezone.utc)
    assert answer.response_time == expected


@pytest.mark.parametrize(
    "clock",
    [
        None,
        "2025-05-14T02:09:58Z",
        {"year": 2025, "month": 5, "day": 14, "hour": 2, "minute": 9},
        {"year": 2025, "month": 13, "day": 14, "hour": 2, "minute": 9, "second": 58},
        {"year": 2025, "month": 5, "day": 14, "hour": 2, "minute": 9, "second": "58"},
        {"year": 2025, "month": 5, "day": 14, "hour": 2, "minute": 9, "second": True},
    ],
)
def test_clock_that_cannot_be_read_is_none_and_the_answer_still_good(
    service: HostService, clock: object
) -> None:
    service.script("presnapshot", json_answer({"responseTime": clock}))
    answer = ask(service.address)
    assert answer.is_ok
    assert answer.response_time is None


def test_encryption_details_are_taken_as_they_came(service: HostService) -> None:
    service.script("presnapshot", json_answer(ENCRYPTION))
    assert ask(service.address, details=True).encryption == EncryptionDetails("true", False, "vault settings")


def test_encryption_details_are_not_taken_when_not_asked_for(service: HostService) -> None:
    service.script("presnapshot", json_answer(ENCRYPTION))
    assert ask(service.address).encryption is None


def test_answer_without_encryption_details_has_none(service: HostService) -> None:
    assert ask(service.address, details=True).encryption is None


@pytest.mark.parametrize(
    ("status", "body", "number"),
    [
        (200, b"", 557),
        (201, b"", 557),
        (404, b"", 404),
        (302, b"", 302),
        (500, b"gone", 556),
        (500, b"", 556),
        (500, b'{"error": {}}', 556),
        (500, b'{ "error": {}}', 500),
        (503, b"busy", 503),
    ],
)
def test_answer_that_is_no_success_has_its_number(
    service: HostService, status: int, body: bytes, number: int
) -> None:
    service.script("presnapshot", Answer(status, body, (("Location", "/elsewhere"),)))
    answer = ask(service.address)
    assert answer.telemetry_status == number
    assert not answer.is_ok
    assert answer.error
    assert len(service.requests()) == 1


@pytest.mark.parametrize("body", [b"yes", b"[]", b"\xff", b"[" * 100_000])
def test_answer_that_is_no_json_object_will_do_unless_the_disks_are_encrypted(
    service: HostService, body: bytes
) -> None:
    service.script("presnapshot", Answer(200, body))
    for details in (None, False):
        answer = ask(service.address, details=details)
        assert (answer.telemetry_status, answer.is_ok, answer.error) == (200, True, None)
    answer = ask(service.address, details=True)
    assert answer.telemetry_status == 558
    assert not answer.is_ok


def test_endless_answer_is_cut(service: HostService) -> None:
    service.script("presnapshot", Answer(200, b'{"a": "' + b"x" * 4_000_000 + b'"}'))
    assert ask(service.address, details=True).telemetry_status == 558


def test_host_that_refuses_connections_is_no_answer() -> None:
    # Port 1 refuses connections.
    answer = ask("127.0.0.1:1")
    assert answer.telemetry_status == 555
    assert answer.error is not None
    assert OPAQUE not in answer.error


def test_host_that_is_too_slow_is_no_answer_and_not_asked_again(service: HostService) -> None:
    service.script("presnapshot", Answer(after_ms=NEVER_MS))
    assert ask(service.address, limit_seconds=0.8).telemetry_status == 555
    assert len(service.requests()) == 1


def test_connection_that_is_dropped_before_an_answer_is_tried_once_more(service: HostService) -> None:
    service.script("presnapshot", Answer(drops_connection=True), USUAL)
    assert ask(service.address).is_ok
    service.script("presnapshot", Answer(drops_connection=True))
    assert ask(service.address).telemetry_status == 555
    assert len(service.requests()) == 4


def test_dropped_connection_is_not_tried_again_when_no_time_is_left(service: HostService) -> None:
    service.script("presnapshot", Answer(drops_connection=True))
    assert ask(service.address, limit_seconds=0.4).telemetry_status == 555
    assert len(service.requests()) == 1


# DoSnapshot's request.


def test_do_snapshot_is_the_contracts_worked_example() -> None:
    uri, headers, body = do_snapshot_call(settings(), pre=None, address="168.63.129.16")
    assert uri == "http://168.63.129.16/metadata/recsvc/snapshot/dosnapshot?api-version=2017-12-01"
    assert headers == [("Backup", "true"), ("Content-type", "application/json"), ("UserAgent", "VMSnapshot")]
    assert body.decode() == (
        '{"taskId": "BT-1", "diskIds": [0, 3, -1], '
        '"settings": [{"Key": "isSnapshotTtlEnabled", "Value": true}, '
        '{"Key": "useMccfToFetchDsasForAllDisks", "Value": false}, '
        '{"Key": "useMccfForLad", "Value": "false"}, '
        '{"Key": "EnableVMSnapshotExtensionPolling", "Value": false}, '
        '{"Key": "isVmmdBlobIncluded", "Value": true}], '
        '"snapshotTaskToken": "opaque-task-token", '
        '"snapshotMetadata": [{"Key": "RecoveryPointId", "Value": "123"}], '
        '"instantAccessDurationMinutes": 120}'
    )


def test_what_was_not_given_is_empty_or_left_out() -> None:
    bare = settings(disks=IncludedDisks(), custom=CustomSettings(), backup_metadata=())
    document = json.loads(do_snapshot_call(bare, pre=None, address="h")[2])
    assert document["taskId"] == "T-1"
    assert document["diskIds"] == []
    assert document["snapshotMetadata"] == []
    assert "instantAccessDurationMinutes" not in document


def test_encryption_goes_back_to_the_host_as_it_came() -> None:
    encrypted = settings(disks=IncludedDisks(azure_disk_encryption=True))
    pre = PreSnapshot(200, encryption=EncryptionDetails("true", False, "vault settings"))
    document = json.loads(do_snapshot_call(encrypted, pre=pre, address="h")[2])
    assert document["settings"][5:] == [
        {"Key": "isOsDiskADEEncrypted", "Value": "true"},
        {"Key": "areDataDisksADEEncrypted", "Value": False},
    ]
    assert document["snapshotMetadata"] == [
        {"Key": "RecoveryPointId", "Value": "123"},
        {"Key": "DiskEncryptionSettings", "Value": "vault settings"},
    ]


def test_encryption_is_left_out_of_a_job_that_is_not_about_it() -> None:
    pre = PreSnapshot(200, encryption=EncryptionDetails("true", False, "vault settings"))
    assert do_snapshot_call(settings(), pre=pre, address="h") == do_snapshot_call(
        settings(), pre=None, address="h"
    )


# DoSnapshot's answer.


def test_blob_item_is_passed_on() -> None:
    uri = f"{OS_URI}?snapshot=2025-05-14T02:10:07.4821190Z"
    assert answer_of(entry(), status=201) == (SnapshotItem("true", uri, None, blob_uri=OS_URI),)


@pytest.mark.parametrize("form", ["true", "false", "True", True, False])
def test_is_successful_is_passed_on_in_the_form_received(form: bool | str) -> None:
    (item,) = answer_of(entry(isSuccessful=form))
    assert item.is_successful is form or item.is_successful == form
    assert type(item.is_successful) is type(form)


@pytest.mark.parametrize(
    ("form", "succeeded"), [("true", True), (True, True), ("True", False), ("false", False), (False, False)]
)
def test_only_json_true_and_exactly_the_text_true_are_a_success(form: bool | str, succeeded: bool) -> None:
    (item,) = answer_of(entry(isSuccessful=form))
    assert item.succeeded is succeeded


def test_failed_item_keeps_its_message() -> None:
    (item,) = answer_of(
        entry(isSuccessful="false", snapshotUri=None, errorMessage="The rate ... is exceeded")
    )
    assert item == SnapshotItem("false", None, "The rate ... is exceeded", None)


def test_direct_drive_item_has_an_identifier_in_the_place_of_a_uri() -> None:
    (item,) = answer_of(direct_entry("2025-05-14T02:10:07.512345Z"))
    assert item == SnapshotItem(
        "true",
        blob_uri=DIRECT_URI,
        direct_drive=DirectDriveIdentifier(1747188607512, "5B1D", "opaque-disk-token", 300),
    )
    assert "opaque-disk-token" not in repr(item)


@pytest.mark.parametrize(
    ("creation_time", "unix_ms"),
    [
        ("2025-05-14T02:10:07Z", 1747188607000),
        ("2025-05-14T02:10:07.5Z", 1747188607500),
        ("2025-05-14T02:10:07.5129Z", 1747188607512),
        ("2025-05-14T02:10:07.9999999Z", 1747188607999),
        ("2025-05-14T02:10:07.5123456", 1747188607512),
        ("2025-05-14T04:10:07.5123456+02:00", 1747188607512),
        ("2025-05-13T20:40:07.5123456-05:30", 1747188607512),
        ("2025-05-14T02:10:07.5+00:00", 1747188607500),
        ("2025-02-30T02:10:07Z", None),
        ("yesterday", None),
        (1747188607512, None),
        (None, None),
    ],
)
def test_creation_time_is_read_with_any_fraction_and_offset_and_never_costs_an_item(
    creation_time: object, unix_ms: int | None
) -> None:
    first, second = answer_of(direct_entry(creation_time), entry())
    assert first.direct_drive is not None
    assert first.direct_drive.created_unix_ms == unix_ms
    assert first.succeeded
    assert second.succeeded


@pytest.mark.parametrize(
    "broken",
    [
        "no object",
        None,
        {},
        {"snapshotUri": f"{OS_URI}?snapshot=x", "errorMessage": None, "statusCode": 200},
        {"isSuccessful": "true", "snapshotUri": f"{OS_URI}?snapshot=x", "errorMessage": None},
        {"isSuccessful": "true", "snapshotUri": f"{OS_URI}?snapshot=x", "statusCode": 200},
        entry(isSuccessful=1),
        entry(snapshotUri=None),
    ],
)
def test_entry_that_cannot_be_read_is_a_failed_disk_that_says_so(broken: object) -> None:
    first, second = answer_of(broken, entry())
    assert not first.succeeded
    assert first.is_successful == "false"
    assert first.error_message
    assert second.succeeded


def test_error_message_is_bounded_and_has_no_signature() -> None:
    message = f"could not reach {OS_URI}?sv=1&sig=c2VjcmV0&sp=rw " + 5000 * "x"
    (item,) = answer_of(entry(isSuccessful="false", errorMessage=message))
    assert item.error_message is not None
    assert len(item.error_message) == 4096
    assert "c2VjcmV0" not in item.error_message


def test_answer_without_disks_is_usable_and_empty() -> None:
    assert answer_of() == ()


@pytest.mark.parametrize(
    ("status", "body", "number"),
    [
        (None, b"", 555),
        (500, b"", 556),
        (500, b'{ "error": {"code": "x"}}', 500),
        (200, b"", 557),
        (200, b"no json", 200),
        (201, b"[]", 201),
        (200, b'{"snapshotInfo": null}', 200),
        (200, b'{"snapshotInfo": [{"isSuccessful": "tr', 200),
        (200, b'{"snapshotInfo": [{"isSuccessful": "true", "snapshotUri": "https://a/b?snapshot=1"}]}', 200),
        (200, b'{"snapshotInfo": [null, {}]}', 200),
        (404, b'{"snapshotInfo": []}', 404),
    ],
)
def test_answer_that_says_nothing_of_the_disks_is_not_usable(
    status: int | None, body: bytes, number: int
) -> None:
    answer = read_do_snapshot_answer(status, body)
    assert answer.telemetry_status == number
    assert answer.items == ()
    assert answer.error
