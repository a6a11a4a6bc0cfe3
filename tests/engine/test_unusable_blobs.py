"""An unusable blob is an error, or with `unusable_blobs="report"` a refusal beside the other snapshots."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import vmsnapshot
from tests.conftest import StartFaultServer
from tests.engine.api import SIGNATURE, plan_of, refusal, uri
from tests.support.fault_server import FaultServer
from tests.support.filesystems import ScratchFilesystem


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("blobs", "code"),
    [
        (["", "no uri"], "bad-uri"),
        (["http://127.0.0.1:9/disks/disk", ""], "unsigned-uri"),
        ([uri("refused"), ""], "connect-failed"),
    ],
)
def test_the_first_error_is_raised_when_no_blob_is_usable(
    plan: vmsnapshot.Plan, blobs: list[str], code: str
) -> None:
    phases: list[str] = []
    assert refusal(plan, blobs, unusable_blobs="report", progress=phases.append).code == code
    assert phases[-1] == "connect"


@pytest.mark.parametrize(
    "argument", [{"metadata": {"a-b": "1"}}, {"blob_metadata": [{}]}, {"proxy": "proxy"}]
)
def test_a_mistake_that_concerns_every_blob_is_an_error_even_if_unusable_blobs_are_reported(
    plan: vmsnapshot.Plan, argument: dict[str, Any]
) -> None:
    error = refusal(plan, [uri("first"), uri("second")], unusable_blobs="report", **argument)
    assert error.code in ("bad-metadata", "bad-proxy")


@pytest.mark.usefixtures("root")
def test_unusable_blobs_are_reported_in_order_and_the_others_are_snapshotted(plan: vmsnapshot.Plan) -> None:
    expired = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&se=2020-01-01T00%3A00%3A00Z&sp=r"
    with FaultServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        not_tls = f"https://127.0.0.1:{silent.getsockname()[1]}/disks/silent?sig={SIGNATURE}"
        good = server.uri("good").partition("?")[0]
        blobs = [not_tls, f"{good}?{expired}", "", uri("refused"), f"{good}?sig={SIGNATURE}", good]
        report = vmsnapshot.prepare(
            plan,
            blobs,
            blob_metadata=[{"Place": str(place)} for place in range(len(blobs))],
            unusable_blobs="report",
            connect_timeout=0.5,
        ).run()
        (request,) = server.requests()
    assert b"x-ms-meta-Place: 1\r\n" in request.head
    assert [(blob.uri, blob.outcome, blob.error_code, blob.retryable) for blob in report.blobs] == [
        (not_tls.partition("?")[0], "refused", "connect-timeout", True),
        (good, "created", None, False),
        ("", "refused", "bad-uri", False),
        (uri("refused").partition("?")[0], "refused", "connect-failed", True),
        (good, "refused", "duplicate-blob", False),
        (good, "refused", "unsigned-uri", False),
    ]
    for blob in report.blobs:
        is_created = blob.outcome == "created"
        assert (blob.attempts, blob.http_status) == ((1, 201) if is_created else (0, None))
        assert (blob.message is None) == is_created
    assert report.blobs[2].message is not None
    assert "blob 3 of 6" in report.blobs[2].message
    assert (report.consistency, report.freeze_doubt_code) == ("none", "nothing-frozen")
    assert report.why is not None
    assert "disks/silent was refused: connect-timeout" in report.why
    assert SIGNATURE not in report.to_json()


@pytest.mark.usefixtures("root")
def test_a_blob_whose_server_vanishes_before_the_window_is_reported(plan: vmsnapshot.Plan) -> None:
    with FaultServer() as server:
        with socket.create_server(("127.0.0.1", 0)) as going:
            gone = f"http://127.0.0.1:{going.getsockname()[1]}/disks/gone?sig={SIGNATURE}"
            session = vmsnapshot.prepare(plan, [gone, server.uri("good")], unusable_blobs="report")
            going.accept()[0].close()
        report = session.run()
    assert [(blob.outcome, blob.error_code) for blob in report.blobs] == [
        ("refused", "connect-failed"),
        ("created", None),
    ]


@pytest.mark.usefixtures("root")
def test_a_run_whose_only_server_vanishes_ends_before_its_window(plan: vmsnapshot.Plan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as going:
        gone = f"http://127.0.0.1:{going.getsockname()[1]}/disks/gone?sig={SIGNATURE}"
        phases: list[str] = []
        session = vmsnapshot.prepare(plan, [gone], unusable_blobs="report", progress=phases.append)
        going.accept()[0].close()
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        session.run()
    assert raised.value.code == "connect-failed"
    assert "freeze" not in phases


def test_an_unreachable_blob_does_not_prevent_the_other_snapshot(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    # The socket is bound but does not listen, so that a connection is refused.
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
    # The freeze was flawless. The set is incomplete all the same.
    assert (report.freeze_doubt_code, report.all_thawed) == (None, True)
    assert [filesystem.outcome for filesystem in report.filesystems] == ["thawed"]
    at_ms = {event.event: event.at_ms for event in report.timeline}
    assert at_ms["freeze-returned"] <= at_ms["request-sent"] <= at_ms["request-ended"] <= at_ms["thaw-called"]
    assert (report.consistency, report.consistent) == ("none", False)
    assert report.why == f"the snapshot of {unreachable} was refused: connect-failed"
