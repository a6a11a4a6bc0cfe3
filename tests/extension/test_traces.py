"""The requests to the host and the blob service, and their order: chapter 14 of the extension's contract.

This handler sends fewer requests than the reference: one PreSnapshot, before the freeze (its clock
serves for the check after it), and no blob's properties twice. The form of every request, and the
order of status, snapshots, final status and final log must be the same.
"""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from tests.extension.conftest import (
    Job,
    Vm,
    cause,
    final,
    host_item,
    message,
    telemetry,
    ticks_ago,
    ticks_of,
)
from tests.support.host_service import USUAL, Answer, Request, Usual, blob_error, json_answer
from tests.support.protected_settings import object_str
from tests.support.writers import Writer, writing

PRE = "presnapshot"
DO = "dosnapshot"
API = {"api-version": "2017-12-01"}

BEGINNING = [PRE, "status HEAD", "status PUT", "logs HEAD", "logs PUT"]
END = ["status HEAD", "status PUT", "logs HEAD", "logs PUT"]


def names_of(job: Job, requests: list[Request]) -> list[str]:
    """Returns short names of requests: the operation of the host, or the kind of blob and its operation."""
    names = []
    for request in requests:
        kind = {job.status_blob: "status ", job.logs_blob: "logs "}.get(request.blob, "disk ")
        names.append(request.operation if request.blob == "" else kind + request.operation)
    return names


def trace(job: Job, **environment: str) -> list[str]:
    """Runs the job. Returns the requests, with those to disks sorted."""
    job.run(**environment)
    return names_of(job, job.vm.service.requests())


def test_only_guest_sends_the_requests_of_the_contract(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    assert trace(job) == [*BEGINNING, "disk PUT snapshot", "disk PUT snapshot", *END]


def test_only_host_sends_the_requests_of_the_contract(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    assert trace(job) == [*BEGINNING, DO, *END]


def test_first_host_then_guest_asks_only_the_host_if_it_succeeds(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="firstHostThenGuest")
    assert trace(job) == [*BEGINNING, DO, *END]
    [request] = vm.service.requests(PRE)
    assert request.json["preSnapshotSettings"] == [{"Key": "isVMADEEnabled", "Value": False}]


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (Answer(404), "404"),
        (Answer(500), "556"),
        (Answer(200), "557"),
        (Answer(drops_connection=True), "555"),
    ],
)
def test_first_host_then_guest_asks_the_blobs_if_the_host_fails(vm: Vm, answer: Answer, number: str) -> None:
    vm.service.script(PRE, answer)
    job = vm.job(vm.new_number(), mode="firstHostThenGuest")
    names = trace(job)
    assert [name for name in names if name != PRE] == [
        *BEGINNING[1:],
        "disk PUT snapshot",
        "disk PUT snapshot",
        *END,
    ]
    report = job.blob_report()
    assert (report["code"], report["status"]) == ("1", "success")
    assert f"hostStatusCodePreSnapshot={number}, " in message(report)


def test_first_host_then_guest_asks_the_host_if_its_answer_is_no_json(vm: Vm) -> None:
    vm.service.script(PRE, Answer(200, b"<html>"))
    job = vm.job(vm.new_number(), mode="firstHostThenGuest")
    assert trace(job) == [*BEGINNING, DO, *END]
    assert "hostStatusCodePreSnapshot=200, " in message(job.blob_report())


def test_first_host_then_guest_needs_json_for_encrypted_disks(vm: Vm) -> None:
    vm.service.script(PRE, Answer(200, b"<html>"))
    job = vm.job(vm.new_number(), mode="firstHostThenGuest")
    job.included_disks["isVMADEEnabled"] = True
    assert DO not in trace(job)
    assert "hostStatusCodePreSnapshot=558, " in message(job.blob_report())


def test_answer_that_is_no_json_leaves_the_status_of_dosnapshot(vm: Vm) -> None:
    vm.service.script(DO, Answer(200, b"<html>"))
    job = vm.job(vm.new_number(), mode="onlyHost")
    assert trace(job) == [*BEGINNING, DO, *END]
    assert "hostStatusCodeDoSnapshot=200, " in message(job.blob_report())


def test_first_guest_then_host_asks_the_host_if_all_disks_fail(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="firstGuestThenHost")
    for disk in job.disks:
        vm.service.script(disk, blob_error(403, "AuthorizationFailure"), operation="PUT snapshot")
    assert trace(job) == [*BEGINNING, "disk PUT snapshot", "disk PUT snapshot", DO, *END]
    assert job.blob_report()["code"] == "1"


def test_first_guest_then_host_does_not_ask_the_host_if_one_disk_fails(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="firstGuestThenHost")
    vm.service.script(job.disks[1], blob_error(403, "AuthorizationFailure"), operation="PUT snapshot")
    assert trace(job) == [*BEGINNING, "disk PUT snapshot", "disk PUT snapshot", *END]
    report = job.blob_report()
    assert (report["code"], report["vmHealthInfo"]["vmHealthStatusCode"]) == ("76", 761)


def test_guest_sends_the_encryption_settings_of_each_disk(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.included_disks["isVMADEEnabled"] = True
    vm.service.create_page_blob(job.disks[1], metadata={"diskencryptionsettings": "encrypted-1"})
    names = trace(job)
    # The properties of the disks are read while the transitioning status is written, in either order.
    assert sorted(names[:7]) == sorted([*BEGINNING, "disk GET metadata", "disk GET metadata"])
    assert names[7:] == ["disk PUT snapshot", "disk PUT snapshot", *END]
    [pre] = vm.service.requests(PRE)
    assert pre.json["preSnapshotSettings"] == [{"Key": "isVMADEEnabled", "Value": True}]
    for request in vm.service.requests("GET metadata"):
        assert request.header("x-ms-version") == "2018-03-28"
        assert str(request.header("x-ms-date")).endswith(" GMT")
    metadata = [vm.service.snapshots(disk)[-1].metadata for disk in job.disks]
    assert metadata == [
        {"RecoveryPointId": "123"},
        {"RecoveryPointId": "123", "DiskEncryptionSettings": "encrypted-1"},
    ]


def test_host_gets_the_encryption_details_of_its_presnapshot_answer(vm: Vm) -> None:
    details = {
        "isOsDiskADEEncrypted": True,
        "areDataDisksADEEncrypted": False,
        "DiskEncryptionSettings": "encrypted",
    }
    vm.service.script(PRE, json_answer(details))
    job = vm.job(vm.new_number(), mode="onlyHost")
    job.included_disks["isVMADEEnabled"] = True
    assert trace(job) == [*BEGINNING, DO, *END]
    [request] = vm.service.requests(DO)
    assert request.json["settings"][5:] == [
        {"Key": "isOsDiskADEEncrypted", "Value": True},
        {"Key": "areDataDisksADEEncrypted", "Value": False},
    ]
    assert request.json["snapshotMetadata"][-1] == {"Key": "DiskEncryptionSettings", "Value": "encrypted"}


def test_job_that_starts_too_late_takes_no_snapshot(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest", commandStartTimeUTCTicks=ticks_ago(minutes=141))
    vm.service.script(PRE, json_answer({}))
    assert trace(job) == [PRE, "logs HEAD", "logs PUT", "status HEAD", "status PUT"]
    report = job.blob_report()
    assert (report["code"], report["status"], report["snapshotInfo"]) == ("402", "error", None)
    assert report["vmHealthInfo"] == {"vmHealthState": 256, "vmHealthStatusCode": 402}
    assert message(report).startswith("CRP timeout limit has reached, will not take snapshot.")


def test_job_that_becomes_late_between_presnapshot_and_the_freeze_freezes_nothing(vm: Vm) -> None:
    # By the host's clock the job has one second left. Its first upload takes longer.
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    fields = ("year", "month", "day", "hour", "minute", "second")
    vm.service.script(PRE, json_answer({"responseTime": {name: getattr(now, name) for name in fields}}))
    start = now - datetime.timedelta(minutes=140) + datetime.timedelta(seconds=1)
    job = vm.job(vm.new_number(), mode="onlyGuest", commandStartTimeUTCTicks=ticks_of(start.timestamp()))
    vm.service.script(job.status_blob, Usual(after_ms=1500.0), USUAL, operation="PUT")
    assert trace(job) == [*BEGINNING, *END]
    report = job.blob_report()
    assert final(report) == ("error", "402", 402)
    assert "when everything was prepared for the freeze" in cause(report)


NOT_DISPATCHED: list[tuple[dict[str, Any], tuple[str, str, int], str]] = [
    ({"commandToExecute": "frobnicate"}, ("error", "11", 11), "command is not correct"),
    ({"commandToExecute": None}, ("error", "2", 2), "Enable failed."),
    ({"commandToExecute": "Install"}, ("success", "1", 1), "Install Succeeded"),
    ({"backupMetadata": None}, ("error", "11", 11), "required field empty or not correct"),
    ({"customSettings": "{bad"}, ("error", "2", 2), "Enable failed."),
    ({"customSettings": {}}, ("error", "2", 2), "Enable failed."),
]


def not_dispatched(vm: Vm, changes: dict[str, Any], **more: Any) -> Job:
    """Returns a job that takes no snapshot because of these settings."""
    changes = dict(changes)
    if "backupMetadata" in changes:
        changes["objectStr"] = object_str({"backupMetadata": changes.pop("backupMetadata")})
    return vm.job(vm.new_number(), **{**changes, **more})


@pytest.mark.parametrize(("changes", "expected", "words"), NOT_DISPATCHED, ids=lambda value: str(value)[:40])
def test_job_that_is_not_dispatched_reports_like_one_that_was(
    vm: Vm, changes: dict[str, Any], expected: tuple[str, str, int], words: str
) -> None:
    job = not_dispatched(vm, changes)
    assert trace(job) == [PRE, *END]
    [pre] = vm.service.requests(PRE)
    assert "preSnapshotSettings" not in pre.json
    report = job.blob_report()
    assert final(report) == expected
    assert message(report).startswith(words)
    assert report["snapshotInfo"] is None
    assert telemetry(report)["extErrorCode"]
    assert report["storageDetails"]["partitionCount"] > 0
    # The disks of a test are loop devices, which the size leaves out and the telemetry names.
    assert "loopDevicesSize" in telemetry(report)
    assert vm.extension.report(job.number) == report


@pytest.mark.parametrize("changes", [row[0] for row in NOT_DISPATCHED], ids=lambda value: str(value)[:40])
def test_rule_of_140_minutes_comes_before_the_dispatch(vm: Vm, changes: dict[str, Any]) -> None:
    job = not_dispatched(vm, changes, commandStartTimeUTCTicks=ticks_ago(minutes=141))
    vm.service.script(PRE, json_answer({}))
    assert trace(job) == [PRE, "logs HEAD", "logs PUT", "status HEAD", "status PUT"]
    report = job.blob_report()
    assert final(report) == ("error", "402", 402)
    assert "extErrorCode" not in telemetry(report)


@pytest.mark.parametrize("changes", [row[0] for row in NOT_DISPATCHED], ids=lambda value: str(value)[:40])
def test_host_is_not_asked_without_a_start_if_there_is_nothing_to_do(vm: Vm, changes: dict[str, Any]) -> None:
    job = not_dispatched(vm, changes, commandStartTimeUTCTicks=None)
    assert trace(job) == END


def test_clock_of_the_host_decides_whether_a_job_is_too_late(vm: Vm) -> None:
    long_ago = {"year": 2001, "month": 2, "day": 3, "hour": 4, "minute": 5, "second": 6}
    vm.service.script(PRE, json_answer({"responseTime": long_ago}))
    job = vm.job(vm.new_number(), mode="onlyGuest", commandStartTimeUTCTicks=ticks_ago(minutes=1000))
    assert job.run()["code"] == "1"


def test_guest_request_has_the_form_of_the_contract(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.run()
    [request] = vm.service.requests("PUT snapshot")
    assert request.method == "PUT"
    assert request.has_signature
    assert request.body == b""
    assert list(request.query)[-1] == "comp"
    assert request.headers == (
        ("Host", vm.service.address),
        ("Content-Length", "0"),
        ("x-ms-meta-RecoveryPointId", "123"),
    )


def test_host_requests_have_the_form_of_the_contract(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=3, mode="onlyHost")
    job.included_disks["instantAccessDurationMinutes"] = 120
    job.included_disks["isVmmdBlobIncluded"] = True
    job.object["dynamicConfigsFromCRP"] = [
        {"Key": "IsSnapshotTTLEnabled", "Value": True},
        {"Key": "usemccfforlad", "Value": "false"},
    ]
    job.run()
    pre, do = vm.service.requests(PRE)[0], vm.service.requests(DO)[0]
    assert pre.json == {"taskId": "BT-1", "snapshotTaskToken": "TT"}
    assert do.json == {
        "taskId": "BT-1",
        "diskIds": [0, 1, -1],
        "settings": [
            {"Key": "isSnapshotTtlEnabled", "Value": True},
            {"Key": "useMccfToFetchDsasForAllDisks", "Value": False},
            {"Key": "useMccfForLad", "Value": "false"},
            {"Key": "EnableVMSnapshotExtensionPolling", "Value": False},
            {"Key": "isVmmdBlobIncluded", "Value": True},
        ],
        "snapshotTaskToken": "TT",
        "snapshotMetadata": [{"Key": "RecoveryPointId", "Value": "123"}],
        "instantAccessDurationMinutes": 120,
    }
    for request, operation in ((pre, "presnapshot"), (do, "dosnapshot")):
        assert (request.method, request.path) == ("POST", f"/metadata/recsvc/snapshot/{operation}")
        assert request.query == API
        headers = dict(request.headers)
        assert headers["Host"] == "168.63.129.16"
        assert headers["Backup"] == "true"
        assert headers["Content-type"] == "application/json"
        assert headers["UserAgent"] == "VMSnapshot"
        assert headers["Content-Length"] == str(len(request.body))
        assert "User-Agent" not in headers


def test_writers_stall_during_the_snapshots_and_at_no_other_time(vm: Vm) -> None:
    vm.service.script(PRE, json_answer({}, after_ms=400.0))
    vm.service.script(DO, json_answer({"snapshotInfo": [host_item("true")]}, after_ms=250.0))
    job = vm.job(vm.new_number(), disks=1, mode="onlyHost")
    with writing([filesystem.mount_point for filesystem in vm.filesystems]) as writers:
        assert job.run()["code"] == "1"
    [pre], [do] = vm.service.requests(PRE), vm.service.requests(DO)
    for writer in writers:
        assert is_stalled(writer, do.at_ns + 125_000_000)
        assert not is_stalled(writer, pre.at_ns + 200_000_000)


def is_stalled(writer: Writer, at_ns: int) -> bool:
    """Returns whether a write was stalled at that instant, for longer than a slow disk would explain."""
    return any(
        stall.start_ns <= at_ns <= stall.start_ns + stall.length_ms * 1e6
        for stall in writer.stalls()
        if stall.length_ms > 100
    )
