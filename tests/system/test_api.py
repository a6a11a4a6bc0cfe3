"""What only the Python API offers, with real freezes: the host call, metadata a blob, bodies, doubts."""

from __future__ import annotations

import json

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
