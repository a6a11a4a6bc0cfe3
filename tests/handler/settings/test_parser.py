"""What the settings of a job mean: the tables in chapter 1 of the extension's contract, row by row."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
from typing import Any

import pytest

from tests.handler.settings.settings_of_a_job import (
    LOGS_URI,
    OS_URI,
    PROTECTED,
    REQUEST,
    SIGNATURE,
    STATUS_URI,
    public,
)
from tests.support.protected_settings import object_str
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import SasUri, Secret
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.parser import parse
from vmsnapshot.handler.settings.wire import (
    Command,
    CustomSettings,
    DynamicConfigs,
    IncludedDisks,
    Job,
    Pair,
    Settings,
    SettingsError,
    SnapshotMode,
)

# Copied from section 1.9 of the contract.
WORKED_EXAMPLE_PUBLIC = {
    "commandToExecute": "snapshot",
    "taskId": "9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22_1",
    "locale": "en-us",
    "commandStartTimeUTCTicks": "638827848000000000",
    "vmType": "microsoft.compute/virtualmachines",
    "objectStr": (
        "eyJiYWNrdXBNZXRhZGF0YSI6W3siS2V5IjoiUmVjb3ZlcnlQb2ludElkIiwiVmFsdWUiOiIxMjMifV0sInNuYXBzaG90VGFza1Rv"
        "a2VuIjoiVFQiLCJpbmNsdWRlZERpc2tzIjp7ImlzQW55RGlza0V4Y2x1ZGVkIjpmYWxzZSwiZGF0YURpc2tMdW5MaXN0IjpbMCwz"
        "XSwiaXNPU0Rpc2tJbmNsdWRlZCI6dHJ1ZX0sImR5bmFtaWNDb25maWdzRnJvbUNSUCI6W3siS2V5IjoiSXNTbmFwc2hvdFRUTEVu"
        "YWJsZWQiLCJWYWx1ZSI6dHJ1ZX1dfQ=="
    ),
    "customSettings": '{"takeSnapshotFrom":"firstHostThenGuest","isManagedVm":true,"backupTaskId":"BT-1"}',
}
WORKED_EXAMPLE_PROTECTED = {
    "objectStr": (
        "eyJibG9iU0FTVXJpIjpbImh0dHBzOi8vY29udG9zbzUzNjUuYmxvYi5jb3JlLndpbmRvd3MubmV0L3ZoZHMvb3MudmhkP3N2PTIw"
        "MTQtMDItMTQmc3I9YiZzaWc9QUFBQSZzcD1ydyJdfQ=="
    ),
    "logsBlobUri": "https://logs.blob.core.windows.net/c/vm1.Logs.txt?sv=2014-02-14&sr=b&sig=BBBB&sp=rw",
    "statusBlobUri": "https://logs.blob.core.windows.net/c/vm1.Status.txt?sv=2014-02-14&sr=b&sig=CCCC&sp=rw",
}


def without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def parsed(protected: dict[str, Any] | None = None, **changes: Any) -> Settings:
    return parse(Envelope(public(**changes)), PROTECTED if protected is None else protected)


def parsed_request(**changes: Any) -> Settings:
    return parsed(objectStr=object_str({**REQUEST, **changes}))


def parsed_custom(**settings: Any) -> Settings:
    return parsed(customSettings=json.dumps(settings))


def error_of(settings: dict[str, Any], protected: dict[str, Any]) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        parse(Envelope(settings), protected)
    return caught.value


def test_worked_example_of_the_contract_is_understood() -> None:
    settings = parse(Envelope(WORKED_EXAMPLE_PUBLIC), WORKED_EXAMPLE_PROTECTED)
    assert settings == Settings(
        job=Job(
            task_id="9d8b6a1c-52e0-4f3b-8c1d-6a7be0f41c22_1",
            start_ticks="638827848000000000",
            is_v2=True,
            status_blob=SasUri(WORKED_EXAMPLE_PROTECTED["statusBlobUri"]),
            logs_blob=SasUri(WORKED_EXAMPLE_PROTECTED["logsBlobUri"]),
        ),
        command=Command.SNAPSHOT,
        backup_metadata=(Pair("RecoveryPointId", "123"),),
        snapshot_task_token=Secret("TT"),
        disks=IncludedDisks(luns=(0, 3, -1)),
        dynamic_configs=DynamicConfigs(is_snapshot_ttl_enabled=True),
        blobs=(
            SasUri("https://contoso5365.blob.core.windows.net/vhds/os.vhd?sv=2014-02-14&sr=b&sig=AAAA&sp=rw"),
        ),
        custom=CustomSettings(
            take_snapshot_from=SnapshotMode.FIRST_HOST_THEN_GUEST, is_managed_vm=True, backup_task_id="BT-1"
        ),
    )
    assert settings.host_task_id == "BT-1"
    assert settings.start == datetime.datetime(2025, 5, 14, 2, tzinfo=datetime.timezone.utc)


# The rows of section 1.8 of the contract, with the values that it asks of a new implementation.
UNUSABLE = "required field empty or not correct"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param("", id="empty"),
        pytest.param({"backupMetadata": []}, id="an object"),
        pytest.param("QQ", id="bad padding"),
        pytest.param(base64.b64encode('{"backupMetadata":[],"a":"é"}'.encode()).decode(), id="not ascii"),
        pytest.param(base64.b64encode(b'\xef\xbb\xbf{"backupMetadata":[]}').decode(), id="byte order mark"),
        pytest.param(object_str(json.dumps(REQUEST)), id="double-quoted"),
        pytest.param(base64.b64encode(b'{"backupMetadata":[').decode(), id="bad json"),
        pytest.param(base64.b64encode(b"[1]").decode(), id="a list"),
        pytest.param(base64.b64encode(b'{"backupMetadata":' + b"[" * 100_000).decode(), id="too deep"),
        pytest.param(object_str({"snapshotTaskToken": SIGNATURE}), id="no backupMetadata"),
    ],
)
def test_unusable_public_object_str_is_11_and_names_the_blobs(value: Any) -> None:
    error = error_of(public(objectStr=value), PROTECTED)
    assert error.code == Code.PARAMETERS
    assert str(error).startswith(UNUSABLE)
    assert error.job.status_blob == SasUri(STATUS_URI)
    assert error.job.logs_blob == SasUri(LOGS_URI)
    assert error.job.task_id == "task_1"


def test_missing_public_object_str_is_11() -> None:
    assert error_of(without(public(), "objectStr"), PROTECTED).code == Code.PARAMETERS


@pytest.mark.parametrize(
    "value",
    ["QQ", base64.b64encode(b"not json").decode(), object_str({}), object_str({"blobSASUri": OS_URI}), 7],
)
def test_unusable_protected_object_str_is_11(value: Any) -> None:
    error = error_of(public(), {**PROTECTED, "objectStr": value})
    assert error.code == Code.PARAMETERS
    assert error.job.status_blob == SasUri(STATUS_URI)


def test_no_public_settings_are_11_when_there_are_protected_ones() -> None:
    error = error_of({}, PROTECTED)
    assert error.code == Code.PARAMETERS
    assert error.job.status_blob == SasUri(STATUS_URI)


def test_no_settings_at_all_are_16() -> None:
    error = error_of({}, {})
    assert error.code == Code.CERTIFICATE_NOT_FOUND
    assert str(error) == "unable to load certificate"
    assert error.job == Job()


def test_no_protected_settings_leave_a_job_without_blobs() -> None:
    settings = parsed({})
    assert settings.blobs == ()
    assert (settings.job.status_blob, settings.job.logs_blob) == (None, None)


def test_missing_vm_type_is_not_v2() -> None:
    assert not parse(Envelope(without(public(), "vmType")), PROTECTED).job.is_v2


def test_null_backup_metadata_is_11() -> None:
    assert parsed_request(backupMetadata=None).refusal == (Code.PARAMETERS, UNUSABLE)


def test_null_backup_metadata_does_not_stop_an_install() -> None:
    settings = parsed(commandToExecute="install", objectStr=object_str({"backupMetadata": None}))
    assert (settings.command, settings.backup_metadata, settings.refusal) == (Command.INSTALL, (), None)


@pytest.mark.parametrize("value", [None, 5, ["snapshot"]])
def test_missing_command_is_2(value: Any) -> None:
    settings = parsed(commandToExecute=value)
    assert settings.command is None
    assert settings.refusal is not None
    assert settings.refusal.code == Code.ERROR
    assert settings.refusal.message.startswith("Enable failed.")


@pytest.mark.parametrize("value", ["", "backup", "snap shot"])
def test_unknown_command_is_11(value: str) -> None:
    settings = parsed(commandToExecute=value)
    assert (settings.command, settings.refusal) == (None, (Code.PARAMETERS, "command is not correct"))


@pytest.mark.parametrize("value", ["{", "[]", "null", " ", {"takeSnapshotFrom": "onlyHost"}, 5, False])
def test_custom_settings_that_are_no_text_of_an_object_are_2(value: Any) -> None:
    settings = parsed(customSettings=value)
    assert settings.refusal is not None
    assert settings.refusal.code == Code.ERROR
    assert settings.refusal.message.startswith("Enable failed.")
    assert settings.custom == CustomSettings()


def test_first_reason_to_refuse_a_job_counts_and_the_rest_is_read() -> None:
    settings = parsed_request(backupMetadata=None, includedDisks={"dataDiskLunList": [3]})
    assert settings.disks.luns == (3,)
    settings = parsed(commandToExecute="backup", customSettings="{")
    assert settings.refusal == (Code.PARAMETERS, "command is not correct")


def test_job_that_is_not_refused_has_no_refusal() -> None:
    assert parsed().refusal is None


@pytest.mark.parametrize("mode", [None, "unknown", 1, ["onlyHost"], {}])
def test_custom_settings_without_a_known_mode_leave_the_default_and_keep_the_rest(mode: Any) -> None:
    custom = parsed_custom(takeSnapshotFrom=mode, backupTaskId="BT-1", waDiskLunList=[2]).custom
    assert custom.take_snapshot_from is None
    assert (custom.backup_task_id, custom.write_accelerated_luns) == ("BT-1", (2,))


def test_custom_settings_are_read_key_by_key() -> None:
    assert parsed_custom(backupTaskId="BT-1").host_task_id == "BT-1"
    assert parsed_custom(waDiskLunList=[2, 4]).custom.write_accelerated_luns == (2, 4)
    assert parsed_custom(isManagedVm=True).custom.is_managed_vm
    assert parsed_custom(canTakeCrashConsistentSnapshot=True).custom.can_take_crash_consistent_snapshot
    assert parsed_custom(backupRetryCount=3).custom.backup_retry_count == 3
    assert parsed_custom(isOnlyOSDiskBackupEnabled=False).custom.is_only_os_disk_backup_enabled is False
    assert parsed_custom().custom == CustomSettings()


@pytest.mark.parametrize("mode", list(SnapshotMode))
def test_every_mode_of_the_wire_is_known(mode: SnapshotMode) -> None:
    assert parsed_custom(takeSnapshotFrom=mode.value).custom.take_snapshot_from is mode


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backupRetryCount", "3"),
        ("backupRetryCount", True),
        ("backupTaskId", 5),
        ("waDiskLunList", "2"),
        ("isManagedVm", "true"),
        ("canTakeCrashConsistentSnapshot", "false"),
        ("isOnlyOSDiskBackupEnabled", 1),
        ("takeSnapshotFrom", "OnlyGuest"),
    ],
)
def test_custom_setting_of_a_wrong_type_is_absent_with_a_warning(key: str, value: Any) -> None:
    settings = parsed_custom(**{key: value})
    assert settings.custom == CustomSettings()
    assert [key in warning for warning in settings.warnings] == [True]


@pytest.mark.parametrize("ticks", [None, "", "soon", "6.36458E+17", 6.36458e17])
def test_ticks_that_cannot_be_used_are_echoed_and_give_no_start(ticks: Any) -> None:
    settings = parsed(commandStartTimeUTCTicks=ticks)
    assert settings.job.start_ticks == ticks
    assert type(settings.job.start_ticks) is type(ticks)
    assert settings.start is None


def test_no_rule_for_ticks_means_that_missing_ones_are_null() -> None:
    settings = parse(Envelope(without(public(), "commandStartTimeUTCTicks")), PROTECTED)
    assert (settings.job.start_ticks, settings.start) == (None, None)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("snapshot", Command.SNAPSHOT),
        ("SnapShot", Command.SNAPSHOT),
        ("Install", Command.INSTALL),
        ("uninstall", Command.INSTALL),
        ("snapshot and install", Command.INSTALL),
        ("a snapshot, please", Command.SNAPSHOT),
    ],
)
def test_a_word_in_the_command_decides_and_install_comes_first(text: str, command: Command) -> None:
    assert parsed(commandToExecute=text).command is command


@pytest.mark.parametrize(
    ("vm_type", "is_v2"),
    [
        ("Microsoft.Compute/VirtualMachines", True),
        ("microsoft.classiccompute/virtualmachines", False),
        ("", False),
        (2, False),
    ],
)
def test_vm_type_is_compared_whatever_its_case(vm_type: Any, is_v2: bool) -> None:
    assert parsed(vmType=vm_type).job.is_v2 is is_v2


def test_public_blob_uris_win_over_protected_ones_unless_empty() -> None:
    job = parsed(statusBlobUri="https://public/status?sig=a", logsBlobUri="").job
    assert job.status_blob == SasUri("https://public/status?sig=a")
    assert job.logs_blob == SasUri(LOGS_URI)
    assert parsed(statusBlobUri=None, logsBlobUri=5).job.status_blob == SasUri(STATUS_URI)


@pytest.mark.parametrize("public_value", [None, ""])
def test_protected_custom_settings_count_where_there_are_no_public_ones(public_value: Any) -> None:
    protected = {**PROTECTED, "customSettings": '{"backupTaskId":"protected"}'}
    assert parsed(protected, customSettings=public_value).host_task_id == "protected"
    assert parsed(protected, customSettings='{"backupTaskId":"public"}').host_task_id == "public"


def test_task_id_serves_the_host_where_there_is_no_backup_task_id() -> None:
    assert parsed().host_task_id == "task_1"
    assert parsed_custom(backupTaskId="").host_task_id == "task_1"


@pytest.mark.parametrize(
    ("request_part", "token"),
    [
        ({}, "protected"),
        ({"snapshotTaskToken": "public"}, "public"),
        ({"snapshotTaskToken": None}, ""),
        ({"snapshotTaskToken": ""}, ""),
        ({"snapshotTaskToken": 5}, ""),
    ],
)
def test_protected_token_counts_only_where_the_request_has_none(
    request_part: dict[str, Any], token: str
) -> None:
    settings = parsed(
        {**PROTECTED, "snapshotTaskToken": "protected"}, objectStr=object_str({**REQUEST, **request_part})
    )
    assert settings.snapshot_task_token == Secret(token)
    assert parsed().snapshot_task_token == Secret("")


@pytest.mark.parametrize(
    "decorate",
    [
        lambda text: f" \t\n{text}\r\n ",
        lambda text: f"''{text}'''",
        lambda text: f"\n '{text}' \n",
    ],
)
def test_blanks_and_single_quotes_around_the_request_are_stripped(decorate: Any) -> None:
    text = base64.b64encode(decorate(json.dumps(REQUEST)).encode()).decode()
    assert parsed(objectStr=text).backup_metadata == (Pair("RecoveryPointId", "123"),)


def test_base64_is_read_past_line_breaks_and_foreign_characters() -> None:
    text = object_str(REQUEST)
    broken = "\r\n".join(text[at : at + 20] for at in range(0, len(text), 20)) + "\n-é"
    assert parsed(objectStr=broken).backup_metadata == (Pair("RecoveryPointId", "123"),)


def test_escapes_of_other_than_ascii_are_fine() -> None:
    settings = parsed_request(backupMetadata=[{"Key": "name", "Value": "Müller"}])
    assert settings.backup_metadata == (Pair("name", "Müller"),)


def test_metadata_keep_order_and_type_and_malformed_entries_are_named_without_their_value() -> None:
    settings = parsed_request(
        backupMetadata=[
            {"Key": "b", "Value": 5},
            {"Key": "a", "Value": None},
            {"Key": SIGNATURE},
            SIGNATURE,
            {"Key": "nested", "Value": [SIGNATURE]},
            {"Key": "", "Value": SIGNATURE},
        ]
    )
    assert settings.backup_metadata == (Pair("b", 5), Pair("a", None))
    assert len(settings.warnings) == 4
    assert not any(SIGNATURE in warning for warning in settings.warnings)
    assert parsed_request(backupMetadata=[]).backup_metadata == ()


@pytest.mark.parametrize("value", ["", {}, "text", 5])
def test_metadata_that_are_no_list_are_11(value: Any) -> None:
    error = error_of(public(objectStr=object_str({"backupMetadata": value})), PROTECTED)
    assert error.code == Code.PARAMETERS


FLAGS = {
    "isAnyDiskExcluded": "any_disk_excluded",
    "isAnyWADiskIncluded": "any_write_accelerated_disk",
    "isVmgsBlobIncluded": "vmgs_blob",
    "isAnyDirectDriveDiskIncluded": "any_direct_drive_disk",
    "isVmmdBlobIncluded": "vmmd_blob",
    "isVMADEEnabled": "azure_disk_encryption",
}


@pytest.mark.parametrize("key", FLAGS)
def test_flag_counts_only_as_json_true(key: str) -> None:
    changed: dict[str, Any] = {FLAGS[key]: True}
    assert parsed_request(includedDisks={key: True}).disks == dataclasses.replace(IncludedDisks(), **changed)
    for value in (False, None, "true", "false", 1):
        assert parsed_request(includedDisks={key: value}).disks == IncludedDisks()


@pytest.mark.parametrize(
    ("disks", "luns"),
    [
        ({"dataDiskLunList": [5, 0]}, (5, 0)),
        ({"dataDiskLunList": [5, 0], "isOSDiskIncluded": True}, (5, 0, -1)),
        ({"dataDiskLunList": None, "isOSDiskIncluded": True}, (-1,)),
        ({"isOSDiskIncluded": "true"}, ()),
        ({}, ()),
        (None, ()),
    ],
)
def test_os_disk_comes_last_in_the_list_of_luns(disks: Any, luns: tuple[int, ...]) -> None:
    assert parsed_request(includedDisks=disks).disks.luns == luns


@pytest.mark.parametrize(
    "disks",
    [
        "all",
        [],
        {"dataDiskLunList": "0,3"},
        {"dataDiskLunList": [0, "3"]},
        {"dataDiskLunList": [True]},
        {"dataDiskLunList": [1.5]},
    ],
)
def test_unreadable_list_of_disks_is_11_rather_than_a_guess(disks: Any) -> None:
    error = error_of(public(objectStr=object_str({**REQUEST, "includedDisks": disks})), PROTECTED)
    assert error.code == Code.PARAMETERS


def test_instant_access_duration_is_a_whole_number_or_absent() -> None:
    for value, expected in ((120, 120), (None, None), ("120", None), (True, None)):
        disks = parsed_request(includedDisks={"instantAccessDurationMinutes": value}).disks
        assert disks.instant_access_duration_minutes == expected


def test_dynamic_configs_are_found_whatever_their_case_and_kept_as_they_came() -> None:
    settings = parsed_request(
        dynamicConfigsFromCRP=[
            {"Key": "ISSNAPSHOTTTLENABLED", "Value": "false"},
            {"Key": "useMccfToFetchDsasForAllDisks", "Value": True},
            {"Key": "usemccfforlad", "Value": 1},
            {"Key": "enableVMSnapshotExtensionPolling", "Value": "false"},
        ]
    )
    assert [tuple(pair) for pair in settings.dynamic_configs.pairs()] == [
        ("isSnapshotTtlEnabled", "false"),
        ("useMccfToFetchDsasForAllDisks", True),
        ("useMccfForLad", 1),
        ("EnableVMSnapshotExtensionPolling", "false"),
        ("isVmmdBlobIncluded", False),
    ]
    assert not settings.dynamic_configs.polling
    assert settings.warnings == ()


def test_vmmd_blob_is_included_by_the_disks_only() -> None:
    configs = [{"Key": "isVmmdBlobIncluded", "Value": True}]
    assert parsed_request(dynamicConfigsFromCRP=configs).dynamic_configs == DynamicConfigs()
    settings = parsed_request(includedDisks={"isVmmdBlobIncluded": True})
    assert settings.dynamic_configs == DynamicConfigs(is_vmmd_blob_included=True)


@pytest.mark.parametrize(
    "configs", ["text", {}, [5], [{"Key": "isSnapshotTtlEnabled"}], [{"Key": "new", "Value": SIGNATURE}]]
)
def test_dynamic_configs_that_are_not_understood_are_skipped_with_a_warning(configs: Any) -> None:
    settings = parsed_request(dynamicConfigsFromCRP=configs)
    assert settings.dynamic_configs == DynamicConfigs()
    assert len(settings.warnings) == 1
    assert SIGNATURE not in settings.warnings[0]


def test_blob_uris_are_trimmed_and_none_is_left_out() -> None:
    text = json.dumps({"blobSASUri": [f" {OS_URI}", "https://b/2?sig=x\n", None]}).replace("/", "\\/")
    settings = parsed({"objectStr": base64.b64encode(text.encode()).decode()})
    assert [blob.expose() for blob in settings.blobs] == [OS_URI, "https://b/2?sig=x", ""]
    assert len(settings.warnings) == 1


@pytest.mark.parametrize("protected", [{}, {"objectStr": None}, {"objectStr": ""}])
def test_protected_settings_without_a_list_of_blobs_are_fine(protected: dict[str, Any]) -> None:
    assert parsed(protected).blobs == ()


@pytest.mark.parametrize("uris", [None, []])
def test_list_of_blobs_may_be_null_or_empty(uris: Any) -> None:
    assert parsed({"objectStr": object_str({"blobSASUri": uris})}).blobs == ()


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    settings = parsed(taskId="\ud800", statusBlobUri="https://b/\udfff")
    assert settings.job.task_id is None
    assert settings.job.status_blob == SasUri(STATUS_URI)
    assert len(settings.warnings) == 2


# Secrets.


def test_nothing_that_is_parsed_shows_a_secret() -> None:
    request = {**REQUEST, "snapshotTaskToken": SIGNATURE}
    envelope = Envelope(
        public(objectStr=object_str(request), statusBlobUri=STATUS_URI), Secret(SIGNATURE), "AB", None
    )
    settings = parse(envelope, PROTECTED)
    for thing in (envelope, settings, settings.job, quick_job(envelope)):
        shown = f"{thing} {thing!r}"
        assert SIGNATURE not in shown
        assert object_str(request) not in shown


@pytest.mark.parametrize(
    "changes",
    [
        {"objectStr": SIGNATURE + "="},
        {"objectStr": object_str({"snapshotTaskToken": SIGNATURE})},
        {"objectStr": base64.b64encode(SIGNATURE.encode()).decode()},
    ],
)
def test_no_error_repeats_or_keeps_what_was_read(changes: dict[str, Any]) -> None:
    error: BaseException | None = error_of(public(**changes), PROTECTED)
    while error is not None:
        # A decoder's error contains its whole input, so it may not be in the context of ours.
        assert isinstance(error, SettingsError)
        assert SIGNATURE not in f"{error} {error!r} {error.job!r}"
        error = error.__context__


@pytest.mark.parametrize("changes", [{"commandToExecute": SIGNATURE}, {"customSettings": SIGNATURE}])
def test_no_refusal_repeats_what_was_read(changes: dict[str, Any]) -> None:
    assert SIGNATURE not in str(parsed(**changes).refusal)
