"""What only the Python API offers, with real freezes: host call, metadata a blob, bodies, unusable blobs."""

from __future__ import annotations

import json
import socket

import pytest

import vmsnapshot
from tests.conftest import ArmRescue
from tests.support import freezing
from tests.support.azurite import Azurite
from tests.support.fault_server import Answers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.host import Host
from tests.system.test_snapshot import StartFaultServer


@pytest.fixture
def disk(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """An ext4 with the rescue armed."""
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    return filesystem


def plan_of(disk: ScratchFilesystem) -> vmsnapshot.Plan:
    """A plan of one scratch filesystem and nothing else."""
    return vmsnapshot.plan(include=[f"mount={disk.mount_point}"])


def host_call(host: Host) -> vmsnapshot.HostCall:
    return vmsnapshot.HostCall(host.uri, headers=[("Backup", "true")], body=b'{"diskIds": [-1]}')


def test_a_host_is_called_while_everything_is_frozen(disk: ScratchFilesystem) -> None:
    was_frozen: list[bool] = []

    def look() -> None:
        was_frozen.append(freezing.is_frozen(disk.mount_point))

    with Host(200, b'{"snapshotInfo": []}', before_answer=look) as host:
        report = vmsnapshot.prepare(plan_of(disk), host_call=host_call(host)).run()
    assert was_frozen == [True]
    assert not freezing.is_frozen(disk.mount_point)
    assert (report.consistency, report.why, report.all_thawed) == ("filesystem", None, True)
    assert (report.freeze_doubt, report.freeze_doubt_code) == (None, None)
    assert report.host_call is not None
    assert (report.host_call.http_status, report.host_call.body) == (200, host.body)


def test_a_host_is_not_called_when_the_freeze_failed(disk: ScratchFilesystem) -> None:
    with Host(200, b"{}") as host, freezing.frozen(disk.mount_point):
        report = vmsnapshot.prepare(plan_of(disk), host_call=host_call(host), sync_timeout=None).run()
    assert (report.consistency, report.freeze_doubt_code) == ("none", "frozen-by-another")
    assert report.why == report.freeze_doubt
    assert report.host_call is not None
    assert (report.host_call.outcome, report.host_call.attempts) == ("not-sent", 0)
    assert host.requests == []


def test_a_plan_without_filesystems_takes_snapshots_and_freezes_nothing(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    azurite_http.create_page_blob("unfrozen")
    emptied = plan_of(disk).without_filesystems()
    report = vmsnapshot.prepare(emptied, [azurite_http.sas_uri("unfrozen")]).run()
    assert (report.consistency, report.consistent) == ("crash", False)
    assert (report.freeze_doubt_code, report.filesystems) == ("nothing-frozen", [])
    assert azurite_http.snapshots("unfrozen") == [report.blobs[0].snapshot]


def test_each_snapshot_carries_the_metadata_of_all_and_its_own(
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


def test_the_words_of_a_refusal_are_kept_whole_and_without_signatures(
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


def test_a_blob_that_cannot_be_reached_does_not_keep_another_from_its_snapshot(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    # Bound and not listening: nobody can connect.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{bound.getsockname()[1]}/disks/unreachable"
        report = vmsnapshot.prepare(
            plan_of(disk), [f"{unreachable}?sig=c2VjcmV0", server.uri("good")], unusable_blobs="report"
        ).run()
    refused, good = report.blobs
    assert (refused.uri, refused.outcome, refused.error_code) == (unreachable, "refused", "connect-failed")
    assert (refused.attempts, refused.http_status, refused.retryable) == (0, None, True)
    assert (good.outcome, good.http_status) == ("created", 201)
    # The good one is as consistent as it would be alone; the set is none.
    assert (report.freeze_doubt_code, report.all_thawed) == (None, True)
    assert [filesystem.outcome for filesystem in report.filesystems] == ["thawed"]
    at_ms = {event.event: event.at_ms for event in report.timeline}
    assert at_ms["freeze-returned"] <= at_ms["request-sent"] <= at_ms["request-ended"] <= at_ms["thaw-called"]
    assert (report.consistency, report.consistent) == ("none", False)
    assert report.why == f"the snapshot of {unreachable} was refused: connect-failed"


def test_an_answer_of_200_that_names_a_snapshot_is_as_good_as_201(
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
