"""Real snapshots: on Azurite, over HTTPS, through a proxy, with metadata; requests and answers."""

from __future__ import annotations

import json
from pathlib import Path

import vmsnapshot
from tests.conftest import StartFaultServer
from tests.engine.api import plan_of
from tests.support.azurite import Azurite
from tests.support.certificates import Certificates
from tests.support.command import SnapshotRun, run_command, take_snapshot
from tests.support.connect_proxy import connect_proxy
from tests.support.fault_server import Answers, Creates
from tests.support.filesystems import ScratchFilesystem


def test_snapshots_exist_on_azurite_with_their_metadata(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    names = [f"system-{number}" for number in range(4)]
    for name in names:
        azurite_http.create_page_blob(name, content=name.encode())
    uris = [azurite_http.sas_uri(name) for name in names]
    finished = take_snapshot([disk.mount_point], uris, "--metadata=RunId=abc", "--metadata=Vm=web 1")
    assert finished.status == 0, finished
    report = finished.document
    assert (report["consistent"], report["consistency"], report["why"]) == (True, "filesystem", None)
    for name, blob in zip(names, report["blobs"]):
        assert (blob["outcome"], blob["http_status"], blob["attempts"]) == ("created", 201, 1)
        assert azurite_http.snapshots(name) == [blob["snapshot"]]
        assert azurite_http.read_snapshot(name, blob["snapshot"]).startswith(name.encode())
        assert azurite_http.snapshot_metadata(name, blob["snapshot"]) == {"RunId": "abc", "Vm": "web 1"}
        assert blob["snapshot_uri"] == f"{blob['uri']}?snapshot={blob['snapshot']}"


def test_snapshots_over_https_need_the_ca_file(disk: ScratchFilesystem, azurite_https: Azurite) -> None:
    assert azurite_https.certificates is not None
    azurite_https.create_page_blob("secure")
    uri = azurite_https.sas_uri("secure")
    refused = take_snapshot([disk.mount_point], [uri])
    assert (refused.status, refused.error_code) == (1, "tls-failed")
    assert "--ca-file" in refused.document["error"]["hint"]
    assert azurite_https.snapshots("secure") == []
    finished = take_snapshot([disk.mount_point], [uri], f"--ca-file={azurite_https.certificates.ca_file}")
    assert finished.status == 0, finished
    assert azurite_https.snapshots("secure") == [finished.document["blobs"][0]["snapshot"]]


def test_a_missing_blob_is_refused_and_the_other_snapshot_is_created(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    azurite_http.create_page_blob("there")
    uris = [azurite_http.sas_uri("there"), azurite_http.sas_uri("not-there")]
    finished = take_snapshot([disk.mount_point], uris)
    assert finished.status == 1
    there, not_there = finished.document["blobs"]
    assert there["outcome"] == "created"
    assert (not_there["outcome"], not_there["http_status"], not_there["error_code"]) == (
        "refused",
        404,
        "BlobNotFound",
    )
    assert (finished.document["consistency"], finished.document["all_thawed"]) == ("none", True)


def test_snapshots_go_through_a_proxy_whose_password_is_never_shown(
    disk: ScratchFilesystem, fault_server: StartFaultServer, certificates: Certificates
) -> None:
    server = fault_server(certificates)
    with connect_proxy() as proxy:
        finished = run_command(
            "snapshot",
            "--json",
            "--blobs-from=-",
            f"--mount=mount={disk.mount_point}",
            f"--ca-file={certificates.ca_file}",
            f"--proxy=http://someone:tops3cret@{proxy.address}",
            standard_input=server.uri("disk"),
        )
    assert finished.status == 0, finished
    assert proxy.request_lines == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]
    assert b"authorization: basic" in proxy.heads[0].lower()
    assert len(server.requests()) == 1
    assert "tops3cret" not in finished.output + finished.errors


def test_no_expedite_rcu_leaves_the_setting_alone(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server(default=Creates(after_ms=500))
    before = Path("/sys/kernel/rcu_expedited").read_text()
    with SnapshotRun([disk.mount_point], [server.uri("disk")], "--no-expedite-rcu") as run:
        run.wait_until_open(server)
        assert Path("/sys/kernel/rcu_expedited").read_text() == before
        finished = run.finish()
    assert finished.status == 0
    assert finished.document["mode"]["rcu_expedited"] is False
    assert finished.document["mode"]["rcu_why_not"]


def test_exactly_one_request_is_sent_per_blob(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    uri = server.uri("disk")
    assert take_snapshot([disk.mount_point], [uri], "--metadata=Run=1").status == 0
    (request,) = server.requests()
    line, *headers = request.head.decode().strip().split("\r\n")
    assert line == f"PUT {uri.partition(str(server.port))[2]}&comp=snapshot HTTP/1.1"
    names = {header.partition(":")[0].lower() for header in headers}
    assert names == {"host", "content-length", "x-ms-meta-run"}
    assert request.body == b""


def test_a_plan_without_filesystems_takes_snapshots_and_freezes_nothing(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    azurite_http.create_page_blob("unfrozen")
    emptied = plan_of(disk).without_filesystems()
    report = vmsnapshot.prepare(emptied, [azurite_http.sas_uri("unfrozen")]).run()
    assert (report.consistency, report.consistent) == ("crash", False)
    assert (report.freeze_doubt_code, report.filesystems) == ("nothing-frozen", [])
    assert azurite_http.snapshots("unfrozen") == [report.blobs[0].snapshot]


def test_each_snapshot_has_the_common_metadata_and_its_own(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    names = ["own-0", "own-1"]
    for name in names:
        azurite_http.create_page_blob(name)
    report = vmsnapshot.prepare(
        plan_of(disk),
        [azurite_http.sas_uri(name) for name in names],
        metadata={"Run": "1"},
        blob_metadata=[{}, {"DiskEncryptionSettings": '[{"a": "b"}]'}],
    ).run()
    assert report.consistent, report.why
    carried = [
        azurite_http.snapshot_metadata(name, blob.snapshot or "") for name, blob in zip(names, report.blobs)
    ]
    assert carried == [{"Run": "1"}, {"Run": "1", "DiskEncryptionSettings": '[{"a": "b"}]'}]


def test_the_body_of_a_refusal_is_reported_without_signatures(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    words = "\ufeff<Error><Message>\nThe rate of snapshot blob calls is exceeded\n?sig=c2VjcmV0&se=1"
    body = words.encode()
    head = f"HTTP/1.1 409 Conflict\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server.script("refused", Answers(head + body))
    report = vmsnapshot.prepare(plan_of(disk), [server.uri("refused"), server.uri("good")]).run()
    refused, good = report.blobs
    expected = "<Error><Message>\nThe rate of snapshot blob calls is exceeded\n?sig=...&se=1"
    assert (refused.outcome, refused.body) == ("refused", expected)
    assert (good.outcome, good.body) == ("created", None)
    assert "body" not in json.loads(report.to_json())["blobs"][0]


def test_an_answer_200_that_names_a_snapshot_counts_as_created(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    name = "2026-11-22T10:26:21.8190000Z"
    head = f"HTTP/1.1 200 OK\r\nx-ms-snapshot: {name}\r\nContent-Length: 0\r\n\r\n"
    server.script("good", Answers(head.encode()))
    report = vmsnapshot.prepare(plan_of(disk), [server.uri("good")]).run()
    (good,) = report.blobs
    assert (good.outcome, good.snapshot, good.http_status) == ("created", name, 200)
    assert report.consistent, report.why
