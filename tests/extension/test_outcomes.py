"""What a job reports when a freeze, a thaw or a service fails, with real freezes through ``enable``."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.extension.conftest import Vm, cause, final, host_item, message, telemetry
from tests.support.freezing import frozen, is_frozen, thaw
from tests.support.host_service import NEVER_MS, USUAL, Answer, Script, Usual, blob_error, json_answer
from tests.support.protected_settings import object_str

LIMIT = blob_error(409, "SnapshotCountExceeded", "The snapshot count against this blob has been exceeded.")
RATE = blob_error(409, "SnapshotOperationRateExceeded", "The rate of snapshot blob calls is exceeded.")
BUSY = blob_error(503, "ServerBusy", "The server is busy.")
NEVER = Answer(after_ms=NEVER_MS)
# An item without `errorMessage` and `statusCode`.
PARTIAL = json_answer({"snapshotInfo": [{"isSuccessful": "true", "snapshotUri": "https://a/b?snapshot=1"}]})


def items(*are_successful: object) -> Answer:
    """Returns the host's answer with such entries."""
    return json_answer({"snapshotInfo": [host_item(is_successful) for is_successful in are_successful]})


GUEST = [
    ("some disks failed", [BUSY], ("error", "76", 761), ["ServerBusy", "The server is busy."]),
    ("the limit is reached", [LIMIT], ("error", "85", 85), ["SnapshotCountExceeded", "has been exceeded"]),
    ("the rate is exceeded", [RATE], ("error", "173", 173), ["SnapshotOperationRateExceeded"]),
    ("a disk does not answer", [NEVER], ("error", "76", 761), ["no known snapshot of"]),
]


@pytest.mark.parametrize(
    ("script", "expected", "words"), [row[1:] for row in GUEST], ids=[row[0] for row in GUEST]
)
def test_failed_guest_snapshots_are_reported_by_disk(
    vm: Vm, script: list[Script], expected: tuple[str, str, int], words: list[str]
) -> None:
    vm.extension.configure(timeout=2)
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.disks[1], *script, operation="PUT snapshot")
    report = job.run()
    assert final(report) == expected
    first, second = report["snapshotInfo"]
    assert (first["isSuccessful"], second["isSuccessful"]) == (True, False)
    assert first["snapshotUri"].startswith(f"{first['blobUri']}?snapshot=")
    # The reference omits which disk it was.
    assert second["blobUri"].endswith(job.disks[1])
    # The cause names the disk, and has the words of the service.
    assert f"{job.disks[1]}`" in cause(report)
    assert all(word in cause(report) for word in words)
    assert_thawed(vm)


def test_second_snapshot_that_a_lost_answer_may_have_left_is_in_the_log(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    vm.service.script(job.disks[0], Answer(drops_connection=True), USUAL, operation="PUT snapshot")
    before = vm.extension.log()
    assert final(job.run()) == ("success", "1", 1)
    assert len(vm.service.requests("PUT snapshot")) == 2
    log = vm.extension.log()[len(before) :]
    assert f"{job.disks[0]}` was created, but the first attempt may have created another snapshot" in log


HOST = [
    ("items that are the text false", items("true", "false"), (76, 761)),
    ("items that are JSON false", items("true", False), (76, 761)),
    ("an item that is the text True", items("true", "True"), (76, 761)),
    ("only an item that is the text True", items("True"), (76, 76)),
    ("items without the required keys", PARTIAL, (76, 76)),
    ("nothing but failures", items("false", "false"), (76, 76)),
    ("an empty list", json_answer({"snapshotInfo": []}), (76, 76)),
    ("an empty answer", Answer(200), (76, 76)),
    ("no JSON", Answer(200, b"<html>"), (76, 76)),
    ("404", Answer(404), (76, 76)),
    ("500 without its document", Answer(500, b"oops"), (556, 556)),
    ("500 with its document", Answer(500, b'{ "error": {"code": "x"}}'), (76, 76)),
    ("a dropped connection", Answer(drops_connection=True), (76, 76)),
    ("no answer", NEVER, (76, 76)),
]


@pytest.mark.parametrize(("answer", "codes"), [row[1:] for row in HOST], ids=[row[0] for row in HOST])
def test_failure_of_the_host_is_reported(vm: Vm, answer: Answer, codes: tuple[int, int]) -> None:
    vm.extension.configure(timeout=2)
    vm.service.script("dosnapshot", answer)
    job = vm.job(vm.new_number(), mode="onlyHost")
    report = job.run()
    assert final(report) == ("error", str(codes[0]), codes[1])
    assert message(report).startswith("snapshotCreator=")
    assert cause(report)
    assert len(vm.service.requests("dosnapshot")) == 1
    assert_thawed(vm)


def test_form_of_success_that_the_host_uses_is_passed_on(vm: Vm) -> None:
    vm.service.script("dosnapshot", items("true", True))
    report = vm.job(vm.new_number(), mode="onlyHost").run()
    assert final(report) == ("success", "1", 1)
    assert [entry["isSuccessful"] for entry in report["snapshotInfo"]] == ["true", True]


def test_direct_drive_disks_are_identified(vm: Vm) -> None:
    identifier = {
        "creationTime": "2025-05-14T02:10:07.5123456Z",
        "id": "5B1D3E70-1111-4222-8333-444455556666",
        "token": "opaque",
        "instantAccessDurationMinutes": 300,
    }
    uri = "https://h/disks/77aa/snapshots?snapshotId=5B1D"
    entry = host_item("true", snapshotUri=uri, ddSnapshotIdentifier=identifier)
    vm.service.script("dosnapshot", json_answer({"snapshotInfo": [entry]}))
    job = vm.job(vm.new_number(), mode="onlyHost")
    report = job.run()
    [entry] = report["snapshotInfo"]
    assert (entry["snapshotUri"], entry["blobUri"]) == (None, "https://h/disks/77aa")
    assert entry["directDriveSnapshotIdentifier"] == {
        "creationTime": {"DateTime": "/Date(1747188607512)/", "OffsetMinutes": 0},
        "id": identifier["id"],
        "token": "opaque",
        "instantAccessDurationMinutes": 300,
    }
    assert b'"DateTime": "\\/Date(1747188607512)\\/"' in vm.service.content(job.status_blob)


def test_freeze_of_another_program_fails_the_job_and_is_left_alone(vm: Vm) -> None:
    other = vm.filesystems[1].mount_point
    job = vm.job(vm.new_number(), mode="onlyGuest")
    with frozen(other):
        report = job.run()
        assert is_frozen(other)
    assert final(report) == ("error", "121", 121)
    assert report["snapshotInfo"] == []
    assert vm.service.requests("PUT snapshot") == []
    # The message stays as the service knows it. The cause has its own place, and the log has it too.
    assert message(report).startswith("snapshotCreator=guestExtension, ")
    assert f"`{other}`" in cause(report)
    assert cause(report) in vm.extension.log()
    assert cause(vm.extension.report(job.number)) == cause(report)
    assert_thawed(vm)


def test_failed_freeze_of_the_guest_after_a_failed_host_fails_the_job(vm: Vm) -> None:
    vm.service.script("presnapshot", Answer(404))
    job = vm.job(vm.new_number(), mode="firstHostThenGuest")
    with frozen(vm.filesystems[0].mount_point):
        report = job.run()
    assert final(report) == ("error", "121", 761)


@pytest.mark.parametrize("mode", ["onlyGuest", "onlyHost"])
def test_failed_freeze_is_a_crash_consistent_success_if_the_job_allows_it(vm: Vm, mode: str) -> None:
    vm.service.script("dosnapshot", items("true"))
    job = vm.job(vm.new_number(), disks=1, mode=mode)
    job.custom.update(canTakeCrashConsistentSnapshot=True, backupRetryCount=1)
    with frozen(vm.filesystems[0].mount_point):
        report = job.run()
        assert is_frozen(vm.filesystems[0].mount_point)
    assert final(report) == ("success", "1", 121)
    assert json.loads(report["formattedMessage"]["message"])["snapshotConsistency"] == 3
    assert telemetry(report)["consistencyType"] == "crashConsistent"
    assert len(report["snapshotInfo"]) == 1


def test_disk_that_does_not_answer_within_the_limit_of_a_call_has_failed(vm: Vm) -> None:
    vm.extension.configure(timeout=25)
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.disks[1], Usual(after_ms=12_000.0), operation="PUT snapshot")
    before = vm.extension.log()
    report = job.run()
    assert final(report) == ("error", "76", 761)
    assert [entry["isSuccessful"] for entry in report["snapshotInfo"]] == [True, False]
    assert report["snapshotInfo"][1]["errorMessage"] is None
    # The contract's limit of a storage call, 10 s, is shorter than the hold.
    assert window_ms(vm, before) == pytest.approx(10_000, abs=500)
    assert_thawed(vm)


@pytest.mark.parametrize("mode", ["onlyGuest", "onlyHost"])
def test_snapshots_that_outlast_the_hold_are_reported_and_not_consistent(vm: Vm, mode: str) -> None:
    vm.extension.configure(timeout=3)
    job = vm.job(vm.new_number(), mode=mode)
    for disk in job.disks:
        vm.service.script(disk, Usual(after_ms=4000.0), operation="PUT snapshot")
    vm.service.script("dosnapshot", replace(items("true", "true"), after_ms=4000.0))
    before = vm.extension.log()
    report = job.run()
    assert final(report) == ("error", "2", 2)
    assert [str(entry["isSuccessful"]).lower() for entry in report["snapshotInfo"]] == ["true", "true"]
    assert window_ms(vm, before) < 3000
    if mode == "onlyGuest":
        for disk, entry in zip(job.disks, report["snapshotInfo"]):
            [snapshot] = vm.service.snapshots(disk)
            assert entry["snapshotUri"].endswith(f"{disk}?snapshot={snapshot.time}")


def test_failed_snapshot_outranks_one_that_outlasts_the_hold(vm: Vm) -> None:
    vm.extension.configure(timeout=3)
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.disks[0], Usual(after_ms=4000.0), operation="PUT snapshot")
    vm.service.script(job.disks[1], BUSY, operation="PUT snapshot")
    report = job.run()
    assert final(report) == ("error", "76", 761)
    assert [entry["isSuccessful"] for entry in report["snapshotInfo"]] == [True, False]


def test_snapshot_that_outlasts_the_hold_is_a_crash_consistent_success_if_the_job_allows_it(vm: Vm) -> None:
    vm.extension.configure(timeout=3)
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.custom.update(canTakeCrashConsistentSnapshot=True, backupRetryCount=1)
    vm.service.script(job.disks[0], Usual(after_ms=5000.0), operation="PUT snapshot")
    report = job.run()
    assert final(report) == ("success", "1", 1)
    assert json.loads(report["formattedMessage"]["message"])["snapshotConsistency"] == 3
    assert telemetry(report)["consistencyType"] == "crashConsistent"
    assert [entry["isSuccessful"] for entry in report["snapshotInfo"]] == [True]
    # The request was sent once. The run without a freeze, for a failed freeze, does not follow.
    assert len(vm.service.requests("PUT snapshot")) == 1


@pytest.mark.parametrize("is_allowed", [False, True])
def test_thaw_by_another_program_makes_the_snapshots_inconsistent(vm: Vm, is_allowed: bool) -> None:
    vm.service.script("dosnapshot", replace(items("true"), after_ms=500.0))
    job = vm.job(vm.new_number(), disks=1, mode="onlyHost")
    job.custom.update(canTakeCrashConsistentSnapshot=is_allowed, backupRetryCount=1)
    job.enable()
    vm.service.wait_for("dosnapshot")
    thaw(vm.filesystems[0].mount_point)
    vm.extension.finish()
    report = job.blob_report()
    assert final(report) == (("success", "1", 1) if is_allowed else ("error", "2", 2))
    assert len(report["snapshotInfo"]) == 1


def test_job_with_an_unreachable_blob_service_does_not_freeze(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    uris = [vm.service.uri(disk).replace(f":{vm.service.port}/", ":9/") for disk in job.disks]
    job.protected["objectStr"] = object_str({"blobSASUri": uris})
    report = job.run()
    assert final(report) == ("error", "76", 76)
    assert "connection refused" in cause(report).lower()
    assert [entry["isSuccessful"] for entry in report["snapshotInfo"]] == [False, False]
    assert "FreezeTime" not in telemetry(report)


@pytest.mark.parametrize("bad", ["unreachable", "blank", "unsigned"])
def test_unusable_disk_does_not_prevent_the_other_snapshots(vm: Vm, bad: str) -> None:
    job = vm.job(vm.new_number(), mode="firstGuestThenHost")
    good, other = (vm.service.uri(disk) for disk in job.disks)
    bad_uri = {
        "unreachable": other.replace(f":{vm.service.port}/", ":9/"),
        "blank": " ",
        "unsigned": other.partition("?")[0],
    }[bad]
    job.protected["objectStr"] = object_str({"blobSASUri": [good, bad_uri]})
    report = job.run()
    assert final(report) == ("error", "76", 761)
    first, second = report["snapshotInfo"]
    assert (first["isSuccessful"], second["isSuccessful"]) == (True, False)
    assert second["errorMessage"] is None
    # After a partial failure the host is not asked for the snapshots.
    assert vm.service.requests("dosnapshot") == []


def test_sas_is_sent_even_if_it_is_expired_by_the_clock_of_the_vm(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    expired = re.sub(r"&se=[^&]*", "&se=2001-01-01T00%3A00%3A00Z", vm.service.uri(job.disks[0]))
    job.protected["objectStr"] = object_str({"blobSASUri": [expired]})
    assert final(job.run()) == ("success", "1", 1)


def test_job_that_freezes_nothing_does_not_need_the_lock(vm: Vm) -> None:
    vm.extension.configure(MountsToSkip="/, ext4, xfs")
    directory = vm.extension.sandbox.path("/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock")
    file = directory / "SafeFreezeLockFile"
    if file.exists():
        file.unlink()
        directory.rmdir()
    directory.write_text("")
    try:
        assert final(vm.job(vm.new_number(), mode="onlyGuest").run()) == ("success", "1", 1)
    finally:
        directory.unlink()


def test_job_with_nothing_to_freeze_succeeds(vm: Vm) -> None:
    vm.extension.configure(MountsToSkip="/, ext4, xfs")
    job = vm.job(vm.new_number(), mode="onlyGuest")
    assert final(job.run()) == ("success", "1", 1)
    assert "to freeze: nothing" in vm.extension.log()


def test_skipped_mounts_are_not_frozen(vm: Vm) -> None:
    skipped, frozen = (filesystem.mount_point for filesystem in vm.filesystems)
    vm.extension.configure(MountsToSkip=f"/,{skipped}")
    before = vm.extension.log()
    job = vm.job(vm.new_number(), mode="onlyGuest")
    assert final(job.run()) == ("success", "1", 1)
    log = vm.extension.log()[len(before) :]
    assert f"to freeze: `{frozen}`\n" in log
    assert f"freeze called {skipped}" not in log


def test_skipped_mount_that_is_not_utf_8_does_not_fail_the_job(vm: Vm) -> None:
    configuration = vm.extension.sandbox.path("/etc/azure/vmbackup.conf")
    configuration.write_bytes(b"[SnapshotThread]\nMountsToSkip = /,/data\xff\n")
    before = vm.extension.log()
    assert final(vm.job(vm.new_number(), mode="onlyGuest").run()) == ("success", "1", 1)
    assert vm.extension.log()[len(before) :].count("freeze called") == 2


def test_snapshot_method_of_the_configuration_wins_over_the_settings(vm: Vm) -> None:
    vm.extension.configure(SnapshotMethod="onlyHost")
    vm.job(vm.new_number(), mode="onlyGuest").run()
    assert len(vm.service.requests("dosnapshot")) == 1
    assert vm.service.requests("PUT snapshot") == []


def test_excluded_disks_without_a_list_fail_the_job_before_any_request(vm: Vm) -> None:
    job = vm.job(vm.new_number())
    job.included_disks.update(
        isAnyDiskExcluded=True, dataDiskLunList=[], isOSDiskIncluded=False, isAnyWADiskIncluded=True
    )
    report = job.run()
    assert final(report) == ("error", "17", 17)
    assert report["snapshotInfo"] is None
    assert vm.service.requests("presnapshot") == []


def test_blob_that_the_job_names_twice_has_one_snapshot_that_both_entries_report(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    uris = [vm.service.uri(disk) for disk in job.disks]
    job.protected["objectStr"] = object_str({"blobSASUri": [*uris, uris[0]]})
    report = job.run()
    assert final(report) == ("success", "1", 1)
    first, second, third = report["snapshotInfo"]
    assert first == third != second
    assert len(vm.service.requests("PUT snapshot")) == 2


def test_metadata_that_cannot_be_sent_fail_the_job_and_say_which(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.object["backupMetadata"] = [{"Key": "a b", "Value": "1"}]
    report = job.run()
    assert final(report) == ("error", "11", 11)
    assert "the name of pair 1 is not an identifier" in message(report)
    assert vm.service.requests("PUT snapshot") == []


@pytest.mark.parametrize("value", ["True", "true", "TRUE"])
def test_uploads_are_not_disabled_by_the_case_of_true(vm: Vm, value: str) -> None:
    vm.extension.configure(UploadStatusAndLog=value)
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    assert final(job.run()) == ("success", "1", 1)


def test_uploads_can_be_disabled(vm: Vm) -> None:
    vm.extension.configure(UploadStatusAndLog="False")
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.enable()
    vm.extension.finish()
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    assert {request.blob for request in vm.service.requests()} == {"", *job.disks}


def test_failed_upload_is_reported_and_does_not_change_the_outcome(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.logs_blob, Answer(403))
    report = job.run()
    assert final(report) == ("success", "1", 1)
    assert telemetry(report)["statusBlobUploadError"] == "true"


def test_status_blob_with_other_content_is_left_alone(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.create_block_blob(job.status_blob, b"the result of another run")
    job.enable()
    vm.extension.finish()
    assert vm.service.content(job.status_blob) == b"the result of another run"
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)


def window_ms(vm: Vm, log_before: str) -> float:
    """Returns how long the window of the last job was, as its log says."""
    [milliseconds] = re.findall(r"window (\S+) ms", vm.extension.log()[len(log_before) :])
    return float(milliseconds)


def assert_thawed(vm: Vm) -> None:
    """Checks that nothing is frozen."""
    assert not any(is_frozen(filesystem.mount_point) for filesystem in vm.filesystems)
