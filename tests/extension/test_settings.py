"""Missing and bad settings through ``enable``: each row of the contract's table ends in a final status."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.extension.conftest import Job, Vm, final, message, ticks_ago
from tests.support.host_service import Answer
from tests.support.protected_settings import key_pair, object_str, settings_file_text

Change = Callable[[Job], None]


def public(**values: Any) -> Change:
    """Sets public settings. A value None is JSON's null."""
    return lambda job: job.public.update(values)


def without_public(*names: str) -> Change:
    """Omits public settings."""
    return lambda job: job.omitted.update(names)


def protected(**values: Any) -> Change:
    """Sets protected settings."""
    return lambda job: job.protected.update(values)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


UNUSABLE = [
    ("no objectStr", without_public("objectStr")),
    ("an empty objectStr", public(objectStr="")),
    ("an objectStr that is null", public(objectStr=None)),
    ("bad base64", public(objectStr="abcde")),
    ("no ASCII", public(objectStr=encoded('{"backupMetadata": "é"}'.encode()))),
    ("a byte order mark", public(objectStr=encoded(b'\xef\xbb\xbf{"backupMetadata": []}'))),
    ("double quotes around it", public(objectStr=encoded(b'"{\\"backupMetadata\\": []}"'))),
    ("bad JSON", public(objectStr=encoded(b"{"))),
    ("no backupMetadata", public(objectStr=object_str({"snapshotTaskToken": "TT"}))),
    ("backupMetadata that is null", public(objectStr=object_str({"backupMetadata": None}))),
    ("a protected objectStr that is none", protected(objectStr="abcde")),
    ("a protected objectStr without blobSASUri", protected(objectStr=object_str({}))),
    ("an unknown command", public(commandToExecute="dance")),
]


@pytest.mark.parametrize("change", [row[1] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE])
def test_unusable_settings_end_in_11(vm: Vm, change: Change) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    change(job)
    report = job.run()
    assert final(report) == ("error", "11", 11)
    assert (report["status"], report["taskId"]) == ("error", job.public["taskId"])
    assert_file_is_final(job, report)
    assert vm.service.requests("PUT snapshot") == []


FAILING = [
    ("no commandToExecute", without_public("commandToExecute")),
    ("a commandToExecute that is null", public(commandToExecute=None)),
    ("customSettings that are an object", public(customSettings={})),
    ("customSettings that are no JSON", public(customSettings="{")),
]


@pytest.mark.parametrize("change", [row[1] for row in FAILING], ids=[row[0] for row in FAILING])
def test_settings_that_fail_the_job_end_in_2(vm: Vm, change: Change) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    change(job)
    report = job.run()
    assert final(report) == ("error", "2", 2)
    assert message(report).startswith("Enable failed.")
    assert_file_is_final(job, report)


def test_missing_blobs_end_in_76(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.protected.pop("objectStr")
    report = job.run()
    assert final(report) == ("error", "76", 76)
    assert report["snapshotInfo"] == []


def test_missing_blobs_do_not_prevent_snapshots_by_the_host(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    job.protected.pop("objectStr")
    assert final(job.run()) == ("success", "1", 1)


def test_missing_vm_type_means_a_classic_vm(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    without_public("vmType")(job)
    job.protected.pop("objectStr")
    assert final(job.run()) == ("error", "76", 76)
    assert vm.extension.status(job.number)["status"] == "error"


@pytest.mark.parametrize(
    "ticks", [None, "", "6.36458E+17", 6.36458e17, "soon", "9" * 400, "3155378975999999999"]
)
def test_malformed_ticks_skip_the_rule_and_are_echoed(vm: Vm, ticks: object) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest", commandStartTimeUTCTicks=ticks)
    report = job.run()
    assert final(report) == ("success", "1", 1)
    assert report["commandStartTimeUTCTicks"] == ticks


def test_ticks_may_be_a_number(vm: Vm) -> None:
    ticks = int(ticks_ago(minutes=141))
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest", commandStartTimeUTCTicks=ticks)
    report = job.run()
    assert final(report) == ("error", "402", 402)
    assert report["commandStartTimeUTCTicks"] == ticks


NO_SETTINGS = [
    ("an empty file", ""),
    ("no JSON", "{half a fi"),
    ("nothing in it", settings_file_text(None)),
    ("empty settings", settings_file_text({})),
    ("another shape", json.dumps({"runtimeSettings": []})),
]


@pytest.mark.parametrize("text", [row[1] for row in NO_SETTINGS], ids=[row[0] for row in NO_SETTINGS])
def test_missing_settings_end_in_16(vm: Vm, text: str) -> None:
    number = vm.new_number()
    vm.extension.write_settings(number, text)
    assert vm.extension.run("enable", number).status == 0
    vm.extension.finish()
    assert final(vm.extension.report(number)) == ("error", "16", 16)
    assert vm.service.requests() == []


UNDECRYPTED = [
    "no key",
    "no certificate",
    "another key pair",
    "no thumbprint",
    "a damaged message",
    "no base64",
]


def undecrypted(job: Job, how: str) -> str:
    """Returns the settings file of a job whose protected settings cannot be decrypted."""
    text = json.loads(settings_file_text(job.settings(), job.protected))
    settings = text["runtimeSettings"][0]["handlerSettings"]
    if how == "another key pair":
        settings["protectedSettingsCertThumbprint"] = "0" * 40
    elif how == "no thumbprint":
        settings["protectedSettingsCertThumbprint"] = None
    elif how == "a damaged message":
        settings["protectedSettings"] = settings["protectedSettings"][:400]
    elif how == "no base64":
        settings["protectedSettings"] = "a"
    return json.dumps(text)


@contextlib.contextmanager
def without_file_of_key(vm: Vm, how: str) -> Iterator[None]:
    """Hides the certificate or its key from the extension."""
    suffix = {"no key": "prv", "no certificate": "crt"}.get(how)
    if suffix is None:
        yield
        return
    inside = vm.extension.base_directory.parent / f"{key_pair().thumbprint}.{suffix}"
    path = vm.extension.sandbox.path(inside)
    hidden = path.with_name("hidden")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


@pytest.mark.parametrize("how", UNDECRYPTED)
@pytest.mark.parametrize("mode", ["onlyGuest", "firstHostThenGuest"])
def test_disks_that_are_unknown_because_nothing_could_be_decrypted_end_in_16(
    vm: Vm, how: str, mode: str
) -> None:
    job = vm.job(vm.new_number(), mode=mode)
    vm.service.script("presnapshot", Answer(404))
    with without_file_of_key(vm, how):
        vm.extension.write_settings(job.number, undecrypted(job, how))
        vm.extension.run("enable", job.number)
        vm.extension.finish()
    report = vm.extension.report(job.number)
    assert final(report) == ("error", "16", 16)
    assert report["vmHealthInfo"]["vmHealthState"] == 128
    assert message(report).startswith(
        "unable to load certificate: could not decrypt the protected settings: "
    )
    assert "StatusCode.FailedHandlerGuestAgentCertificateNotFound," in message(report)
    assert report["snapshotInfo"] == []
    assert message(report).partition(" StatusCode")[0].partition(": ")[2] in vm.extension.log()


@pytest.mark.parametrize("mode", ["onlyHost", "firstHostThenGuest", "firstGuestThenHost"])
def test_host_takes_the_snapshots_although_nothing_could_be_decrypted(vm: Vm, mode: str) -> None:
    job = vm.job(vm.new_number(), mode=mode)
    vm.extension.write_settings(job.number, undecrypted(job, "another key pair"))
    vm.extension.run("enable", job.number)
    vm.extension.finish()
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)


@pytest.mark.parametrize("cipher", ["des3", "aes256"])
def test_protected_settings_are_decrypted_and_removed_from_the_file(vm: Vm, cipher: str) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.extension.enable(job.number, job.settings(), job.protected, cipher=cipher)
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)
    handler_settings = json.loads(vm.extension.settings_text(job.number))["runtimeSettings"][0][
        "handlerSettings"
    ]
    assert set(handler_settings) == {"publicSettings", "protectedSettingsCertThumbprint"}
    assert handler_settings["publicSettings"] == job.settings()


def test_command_install_in_the_settings_installs(vm: Vm) -> None:
    job = vm.job(vm.new_number(), commandToExecute="Install")
    report = job.run()
    assert final(report) == ("success", "1", 1)
    assert message(report).startswith("Install Succeeded")
    assert vm.service.requests("PUT snapshot") + vm.service.requests("dosnapshot") == []


def assert_file_is_final(job: Job, report: dict[str, Any]) -> None:
    """Checks that the file embeds the report, and shows a failure of a V2 VM as a success."""
    assert job.vm.extension.report(job.number) == report
    assert job.vm.extension.status(job.number)["status"] == "success"
