"""A job leaves no secret in files, status, blobs, arguments or environment."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path

import pytest

from tests.extension.conftest import Job, Vm, host_item, worker_of
from tests.support.host_service import SIGNATURE, USUAL, Usual, blob_error, json_answer
from tests.support.protected_settings import object_str

TOKEN = "dG9rZW4tdGhhdC1ub2JvZHktbWF5LXNlZQ"  # noqa: S105
DISK_TOKEN = "ZGlzay10b2tlbi1vZi10aGUtaG9zdA"  # noqa: S105
PROTECTED = "cHJvdGVjdGVkLWN1c3RvbS1zZXR0aW5n"


def run_with_secrets(job: Job) -> None:
    """Runs ``enable`` with a secret in every field that can hold one."""
    job.protected["snapshotTaskToken"] = TOKEN
    del job.object["snapshotTaskToken"]
    job.omitted.add("customSettings")
    job.protected["customSettings"] = json.dumps({**job.custom, "note": PROTECTED})
    job.enable()


def secrets() -> list[bytes]:
    """Returns what must not be found: the secrets, and the settings that contain them encoded."""
    plain = [SIGNATURE, SIGNATURE.replace("%2B", "+").replace("%3D", "="), TOKEN, PROTECTED]
    encoded = [text for secret in plain for text in base64_of_a_part(secret.encode())]
    return [secret.encode() for secret in plain] + encoded


def base64_of_a_part(part: bytes) -> list[bytes]:
    """Returns what the base64 of any text that contains ``part`` contains: one of three strings.

    Base64 encodes groups of three bytes, and ``part`` may begin at each of the three places of a group. The
    first and the last group may also hold bytes of the text around it, so both are cut off.
    """
    at_each_place = [base64.b64encode(b"x" * place + part) for place in range(3)]
    return [encoded[4 if place else 0 : -4] for place, encoded in enumerate(at_each_place)]


@pytest.mark.parametrize("mode", ["onlyGuest", "onlyHost"])
def test_no_file_contains_a_secret_after_a_job(vm: Vm, mode: str) -> None:
    job = vm.job(vm.new_number(), mode=mode)
    vm.service.script(
        job.disks[0],
        blob_error(403, "AuthenticationFailed", f"Signature did not match: {vm.service.uri(job.disks[0])}"),
        operation="PUT snapshot",
    )
    identifier = {"creationTime": "2025-05-14T02:10:07Z", "id": "1", "token": DISK_TOKEN}
    uri = "https://h/disks/d/snapshots?snapshotId=1"
    item = host_item("true", snapshotUri=uri, ddSnapshotIdentifier=identifier)
    vm.service.script("dosnapshot", json_answer({"snapshotInfo": [item]}))
    run_with_secrets(job)
    vm.extension.finish()
    found = vm.extension.sandbox.written()
    assert any(name.endswith("extension.log") for name in found)
    assert any(name.endswith(f"{job.number}.status") for name in found)
    found["status blob"] = vm.service.content(job.status_blob)
    found["log blob"] = vm.service.content(job.logs_blob)
    assert found["log blob"]
    leaks = [name for name, content in found.items() if any(secret in content for secret in secrets())]
    assert leaks == []
    # Azure Backup needs a direct-drive disk's token in the report. It may be nowhere else.
    if mode == "onlyHost":
        holders = {Path(name).name for name, content in found.items() if DISK_TOKEN.encode() in content}
        assert holders == {"status blob", f"{job.number}.status"}


def test_no_file_contains_a_secret_after_a_job_that_fails_early(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest", objectStr=f"abcde{TOKEN}x")
    job.protected["objectStr"] = f"!{TOKEN}"
    run_with_secrets(job)
    vm.extension.finish()
    contents = [*vm.extension.sandbox.written().values(), vm.service.content(job.logs_blob)]
    # The public objectStr stays in the settings file, to which the agent has written it.
    assert not any(SIGNATURE.encode() in content for content in contents)
    log = (
        vm.extension.log().encode() + vm.service.content(job.logs_blob) + vm.service.content(job.status_blob)
    )
    assert not any(secret in log for secret in secrets())


def without_sig_mark(signature: str) -> list[str]:
    """Returns the signature as a server may repeat it, without its ``sig=``."""
    decoded = urllib.parse.unquote(signature)
    return [
        decoded,
        signature,
        signature.lower().replace("%2b", "%252b"),
        decoded.replace("+", "\\u002b").replace("=", "\\u003d"),
        decoded.replace("+", "&#43;"),
        decoded.rstrip("="),
    ]


def assert_no_signature(vm: Vm, job: Job) -> None:
    found = vm.extension.sandbox.written()
    found["status blob"] = vm.service.content(job.status_blob)
    found["log blob"] = vm.service.content(job.logs_blob)
    marks = [SIGNATURE[:20], SIGNATURE[:20].lower()]
    leaks = {
        name: mark
        for name, content in found.items()
        for mark in marks
        # The agent wrote the public settings. They have the URIs of the status blob and the log blob.
        if mark.encode() in content and not name.endswith(".settings")
    }
    assert leaks == {}


@pytest.mark.parametrize("form", range(6))
def test_signature_that_services_repeat_reaches_no_file_and_no_report(vm: Vm, form: int) -> None:
    echo = without_sig_mark(SIGNATURE)[form]
    job = vm.job(vm.new_number(), mode="onlyGuest")
    refusal = blob_error(403, "AuthenticationFailed", f"Signature {echo} did not match")
    vm.service.script(job.disks[0], refusal, operation="PUT snapshot")
    code = blob_error(403, echo.replace("&#43;", "+"), f"Signature {echo} did not match")
    vm.service.script(job.disks[1], code, operation="PUT snapshot")
    # The first write of each report fails.
    vm.service.script(job.status_blob, code, USUAL, operation="PUT")
    vm.service.script(job.logs_blob, code, USUAL, operation="HEAD")
    job.run()
    assert_no_signature(vm, job)
    assert "did not match" in vm.extension.status_file(job.number).read_text()


def test_signature_that_the_host_repeats_reaches_no_file_and_no_report(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    items = [host_item("false", errorMessage=f"{echo} is wrong") for echo in without_sig_mark(SIGNATURE)]
    vm.service.script("presnapshot", json_answer({"bhsVersion": SIGNATURE[:20], "result": SIGNATURE}))
    vm.service.script("dosnapshot", json_answer({"snapshotInfo": items}))
    job.run()
    assert_no_signature(vm, job)


def test_token_that_the_host_or_a_service_repeats_reaches_no_file_and_no_report(vm: Vm) -> None:
    for mode in ("onlyHost", "onlyGuest"):
        job = vm.job(vm.new_number(), mode=mode)
        job.object["snapshotTaskToken"] = TOKEN
        identifier = {
            "creationTime": "2025-05-14T02:10:07Z",
            "id": f"https://h/b?sig={SIGNATURE}",
            "token": "t",
        }
        items = [
            host_item("false", errorMessage=f"token {TOKEN} is invalid", ddSnapshotIdentifier=identifier)
        ]
        vm.service.script("presnapshot", json_answer({"bhsVersion": TOKEN, "result": TOKEN}))
        vm.service.script("dosnapshot", json_answer({"snapshotInfo": items}))
        refusal = blob_error(403, "AuthenticationFailed", f"token {TOKEN}")
        vm.service.script(job.disks[0], refusal, operation="PUT snapshot")
        job.run()
        found = vm.extension.sandbox.written()
        found["status blob"] = vm.service.content(job.status_blob)
        found["log blob"] = vm.service.content(job.logs_blob)
        # The agent wrote the public settings.
        written = {
            name: text for name, text in found.items() if not name.endswith((".settings", "_settings"))
        }
        secrets = (TOKEN.encode(), SIGNATURE[:20].encode())
        assert [name for name, text in written.items() if any(secret in text for secret in secrets)] == []


@pytest.mark.parametrize(("mark", "layers"), [("&", 0), (";", 0), ("#", 0), ("\\", 0), ("?", 1), ("?", 3)])
def test_blob_uri_that_lost_its_question_mark_reaches_no_file(vm: Vm, mark: str, layers: int) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    path, _, query = vm.service.uri(job.disks[0]).partition("?")
    written = mark + query
    for _ in range(layers):
        written = urllib.parse.quote(written, safe="")
    uri = path + written
    job.protected["objectStr"] = object_str({"blobSASUri": [uri]})
    job.run()
    assert_no_signature(vm, job)


def test_worker_has_no_secret_in_its_arguments_or_environment(vm: Vm) -> None:
    vm.service.script("presnapshot", Usual(after_ms=700.0))
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    run_with_secrets(job)
    vm.service.wait_for("presnapshot")
    pids = vm.extension.sandbox.process_ids()
    assert worker_of(vm) in pids
    for pid in pids:
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(secret in content for secret in secrets())
