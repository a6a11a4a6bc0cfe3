"""A call to a host that takes the snapshots itself: its arguments, its place in the window, its answer."""

from __future__ import annotations

import json
import math
import socket
from typing import Any

import pytest

import vmsnapshot
from tests.engine.api import HOST_HEADERS, HOST_URI, assert_frozen, host_call, plan_of, refusal, uri
from tests.support import freezing
from tests.support.filesystems import ScratchFilesystem
from tests.support.host import Host


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"uri": "https://168.63.129.16/"}, "bad-host-call"),
        ({"uri": "dosnapshot"}, "bad-host-call"),
        ({"headers": [("Back up", "t0ken")]}, "bad-host-call"),
        ({"headers": [("Backup", "t0ken\r\nHost: other")]}, "bad-host-call"),
        ({"headers": [("content-length", "1")]}, "bad-host-call"),
        ({"time_limit": 0.0}, "bad-time-limit"),
        ({"time_limit": math.nan}, "bad-time-limit"),
        ({"time_limit": 3600.1}, "bad-time-limit"),
    ],
)
def test_a_host_call_that_cannot_be_made_is_refused_without_its_secrets(
    arguments: dict[str, Any], code: str
) -> None:
    good: dict[str, Any] = {"uri": HOST_URI, "headers": HOST_HEADERS, "body": b"t0ken"}
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.HostCall(**{**good, **arguments})
    assert raised.value.code == code
    assert "t0ken" not in str(raised.value) + repr(raised.value)


def test_the_repr_of_a_host_call_shows_its_uri_without_the_query_and_nothing_else() -> None:
    call = vmsnapshot.HostCall(f"{HOST_URI}?api-version=t0ken", headers=[("Token", "t0ken")], body=b"t0ken")
    assert call.uri == HOST_URI
    assert repr(call) == str(call) == f"<vmsnapshot.HostCall {HOST_URI}>"
    assert_frozen(call)
    with pytest.raises(TypeError):
        vmsnapshot.HostCall(HOST_URI, headers={"Backup": "true"}, body=b"")  # type: ignore[arg-type]


@pytest.mark.usefixtures("root")
def test_a_run_that_freezes_nothing_sends_its_host_call_and_reports_the_answer(plan: vmsnapshot.Plan) -> None:
    with Host(200, b'{"token": "t0ken"}') as host:
        call = vmsnapshot.HostCall(f"{host.uri}?v=1", headers=HOST_HEADERS, body=b'{"taskId": "1"}')
        # No proxy listens on port 9: a call through the proxy would fail.
        report = vmsnapshot.prepare(plan, host_call=call, proxy="http://127.0.0.1:9").run()
    assert (report.consistency, report.freeze_doubt_code) == ("crash", "nothing-frozen")
    (request,) = host.requests
    assert (request.path, request.body) == ("/dosnapshot?v=1", b'{"taskId": "1"}')
    assert request.headers == [("Host", host.address), ("Content-Length", "15"), *HOST_HEADERS]
    outcome = report.host_call
    assert outcome is not None
    assert_frozen(outcome)
    assert (outcome.outcome, outcome.http_status, outcome.attempts) == ("answered", 200, 1)
    assert (outcome.body, outcome.body_is_complete) == (host.body, True)
    assert "t0ken" not in repr(outcome) + report.to_json()
    assert json.loads(report.to_json())["host_call"] == {
        "uri": host.uri,
        "outcome": "answered",
        "http_status": 200,
        "body_is_complete": True,
        "error_code": None,
        "message": None,
        "attempts": 1,
        "answer_ms": outcome.answer_ms,
        "answered_late": False,
    }
    assert host.uri in [event.subject for event in report.timeline if event.event == "request-sent"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("status", "attempts", "word"), [(500, 1, "unknown"), (404, 1, "refused"), (503, 2, "refused")]
)
def test_a_host_that_refuses_makes_the_set_of_snapshots_incomplete(
    plan: vmsnapshot.Plan, status: int, attempts: int, word: str
) -> None:
    with Host(status, b'{ "error": 1}') as host:
        call = vmsnapshot.HostCall(host.uri, headers=HOST_HEADERS, body=b"{}")
        report = vmsnapshot.prepare(plan, host_call=call).run()
    assert report.consistency == "none"
    assert report.why is not None
    assert word in report.why
    assert report.host_call is not None
    assert (report.host_call.http_status, report.host_call.body) == (status, host.body)
    assert report.host_call.attempts == len(host.requests) == attempts


@pytest.mark.usefixtures("root")
def test_a_host_that_never_answers_is_given_up_at_the_time_limit_of_the_call(plan: vmsnapshot.Plan) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/dosnapshot"
        call = vmsnapshot.HostCall(uri, headers=[], body=b"", time_limit=0.2)
        report = vmsnapshot.prepare(plan, host_call=call, thaw_timeout=30.0).run()
    outcome = report.host_call
    assert outcome is not None
    assert (outcome.outcome, outcome.error_code, outcome.http_status) == ("unknown", "NoAnswer", None)
    assert (outcome.body, outcome.body_is_complete, outcome.attempts) == (b"", False, 1)
    assert outcome.answer_ms is not None
    assert 200 <= outcome.answer_ms < 5000


@pytest.mark.usefixtures("root")
def test_the_error_for_an_unreachable_host_names_the_host_call(plan: vmsnapshot.Plan) -> None:
    # The socket is bound but does not listen, so that a connection is refused.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{bound.getsockname()[1]}/dosnapshot"
        call = vmsnapshot.HostCall(f"{uri}?t0ken", headers=[], body=b"t0ken")
        error = refusal(plan, host_call=call)
    assert error.code == "connect-failed"
    assert f"the host call to `{uri}`" in str(error)
    assert "t0ken" not in str(error)


@pytest.mark.usefixtures("root")
def test_a_host_is_called_even_if_no_blob_is_usable(plan: vmsnapshot.Plan) -> None:
    with Host(200, b"{}") as host:
        call = vmsnapshot.HostCall(host.uri, headers=HOST_HEADERS, body=b"{}")
        report = vmsnapshot.prepare(plan, [uri(), ""], host_call=call, unusable_blobs="report").run()
    assert [blob.error_code for blob in report.blobs] == ["connect-failed", "bad-uri"]
    assert report.host_call is not None
    assert (report.host_call.http_status, len(host.requests)) == (200, 1)
    assert report.consistency == "none"


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
