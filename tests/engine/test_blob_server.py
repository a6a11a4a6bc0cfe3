"""Blob servers that misbehave: the window ends by its deadline, and the report states each outcome."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.conftest import THAW_LIMIT_MS, Machine
from tests.support.command import Finished, take_snapshot
from tests.support.fault_server import (
    Answers,
    AnswersByteByByte,
    Behaviour,
    Creates,
    FaultServer,
    NeverAnswers,
    Refuses,
    Resets,
)
from tests.support.filesystems import REPOSITORY

THAW_TIMEOUT_SECONDS = 1.0

CLOSES = Answers(b"", then_closes=True)


def take(
    machine: Machine, *script: Behaviour, more: Sequence[str] = (), call_timeout: float = THAW_TIMEOUT_SECONDS
) -> Finished:
    machine.server.script("disk", *script)
    uris = [machine.server.uri(blob) for blob in ("disk", *more)]
    option = f"--call-timeout={call_timeout}"
    return take_snapshot(machine.mount_points, uris, option, thaw_timeout=THAW_TIMEOUT_SECONDS)


def assert_all_thawed_in_time(machine: Machine, report: Any) -> None:
    assert report["all_thawed"] is True
    assert {filesystem["thawed_by"] for filesystem in report["filesystems"]} == {"run"}
    for writer in machine.writers:
        assert writer.longest_stall_ms() < THAW_TIMEOUT_SECONDS * 1e3 + THAW_LIMIT_MS
    machine.assert_rcu_is_back()


@pytest.mark.parametrize(
    "behaviour",
    [NeverAnswers(), AnswersByteByByte(pause_ms=20.0)],
    ids=["never answers", "answers byte by byte"],
)
def test_a_request_without_an_answer_by_the_deadline_is_unknown(
    machine: Machine, behaviour: Behaviour
) -> None:
    finished = take(machine, behaviour, more=["answered"])
    assert finished.status == 1
    report = finished.document
    assert_all_thawed_in_time(machine, report)
    unanswered, answered = report["blobs"]
    assert (unanswered["outcome"], unanswered["error_code"]) == ("unknown", "NoAnswer")
    assert (unanswered["attempts"], unanswered["snapshot"]) == (1, None)
    assert answered["outcome"] == "created"
    assert (report["consistent"], report["consistency"]) == (False, "none")
    assert unanswered["uri"] in report["why"]


def test_a_request_without_an_answer_by_its_call_timeout_ends_the_window_early(machine: Machine) -> None:
    machine.server.script("disk", NeverAnswers())
    uris = [machine.server.uri(blob) for blob in ("disk", "answered")]
    finished = take_snapshot(machine.mount_points, uris, "--call-timeout=0.3", thaw_timeout=8.0)
    report = finished.document
    assert_all_thawed_in_time(machine, report)
    assert 300 <= report["window_ms"] < 600
    unanswered, answered = report["blobs"]
    assert (unanswered["outcome"], unanswered["error_code"]) == ("unknown", "NoAnswer")
    assert unanswered["message"] == "there was no answer within 0.30 s"
    assert answered["outcome"] == "created"


def test_both_attempts_of_a_request_share_its_call_timeout(machine: Machine) -> None:
    machine.server.script("disk", Refuses(503, "ServerBusy", after_ms=300.0), NeverAnswers())
    uris = [machine.server.uri("disk")]
    finished = take_snapshot(machine.mount_points, uris, "--call-timeout=0.6", thaw_timeout=8.0)
    report = finished.document
    assert_all_thawed_in_time(machine, report)
    assert 600 <= report["window_ms"] < 900
    (blob,) = report["blobs"]
    assert (blob["outcome"], blob["error_code"], blob["attempts"]) == ("unknown", "NoAnswer", 2)


def test_an_answer_after_the_thaw_names_its_snapshot_and_the_set_is_not_consistent(machine: Machine) -> None:
    late = Creates(after_ms=THAW_TIMEOUT_SECONDS * 1e3 + 500)
    finished = take(machine, late, more=["answered"], call_timeout=10.0)
    assert finished.status == 1
    report = finished.document
    assert_all_thawed_in_time(machine, report)
    outlasting, answered = report["blobs"]
    assert "after the thaw" in outlasting["message"]
    assert (outlasting["outcome"], outlasting["answered_late"]) == ("created", True)
    assert outlasting["snapshot_uri"].startswith(f"{outlasting['uri']}?snapshot=")
    assert (answered["outcome"], answered["answered_late"]) == ("created", False)
    assert (report["consistent"], report["consistency"]) == (False, "crash")
    assert report["freeze_doubt_code"] == "answered-late"
    assert outlasting["uri"] in report["why"]
    assert report["window_ms"] < THAW_TIMEOUT_SECONDS * 1e3


def test_a_refusal_after_the_thaw_is_reported_and_nothing_is_sent_after_the_window(machine: Machine) -> None:
    late = Refuses(503, "ServerBusy", after_ms=THAW_TIMEOUT_SECONDS * 1e3 + 200)
    finished = take(machine, late, Creates(), call_timeout=10.0)
    assert finished.status == 1
    report = finished.document
    assert_all_thawed_in_time(machine, report)
    (blob,) = report["blobs"]
    assert (blob["outcome"], blob["answered_late"], blob["error_code"]) == ("refused", True, "ServerBusy")
    assert (blob["attempts"], report["freeze_doubt_code"]) == (1, None)
    assert len(machine.server.requests()) == 1


def test_an_answer_byte_by_byte_that_ends_in_time_is_accepted(machine: Machine) -> None:
    finished = take(machine, AnswersByteByByte(pause_ms=0.5))
    assert (finished.status, finished.document["consistent"]) == (0, True)
    assert_all_thawed_in_time(machine, finished.document)


@pytest.mark.parametrize("behaviour", [Resets(), CLOSES], ids=["resets", "closes"])
def test_a_lost_request_is_sent_once_more(machine: Machine, behaviour: Behaviour) -> None:
    finished = take(machine, behaviour, Creates())
    assert (finished.status, finished.document["consistent"]) == (0, True)
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["attempts"]) == ("created", 2)
    assert "may have created another snapshot" in blob["message"]
    assert len(machine.server.requests()) == 2


@pytest.mark.parametrize("behaviour", [Resets(), CLOSES], ids=["resets", "closes"])
def test_a_request_lost_twice_is_unknown(machine: Machine, behaviour: Behaviour) -> None:
    finished = take(machine, behaviour)
    assert finished.status == 1
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["error_code"], blob["attempts"]) == ("unknown", "ConnectionLost", 2)
    assert len(machine.server.requests()) == 2


def test_a_request_lost_and_then_refused_is_unknown(machine: Machine) -> None:
    finished = take(machine, Resets(), Refuses(409, "SnapshotOperationRateExceeded"))
    assert finished.status == 1
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["error_code"]) == ("unknown", "SnapshotOperationRateExceeded")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_not_followed(machine: Machine, status: int) -> None:
    elsewhere = machine.server.uri("elsewhere")
    raw = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"
    finished = take(machine, Answers(raw.encode()))
    assert finished.status == 1
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["http_status"]) == ("refused", status)
    assert {request.blob for request in machine.server.requests()} == {"disk"}


@pytest.mark.parametrize("status", [500, 502, 504, 507])
def test_a_server_error_leaves_open_whether_there_is_a_snapshot(machine: Machine, status: int) -> None:
    finished = take(machine, Refuses(status, "InternalError"))
    assert finished.status == 1
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["http_status"]) == ("unknown", status)


def test_a_server_error_and_then_a_refusal_is_unknown(machine: Machine) -> None:
    finished = take(machine, Refuses(500, "InternalError"), Refuses(403, "AuthorizationFailure"))
    assert finished.status == 1
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["error_code"], blob["attempts"]) == ("unknown", "AuthorizationFailure", 2)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_request_to_a_busy_server_is_sent_once_more(machine: Machine, status: int) -> None:
    finished = take(machine, Refuses(status, "ServerBusy"), Creates())
    assert (finished.status, finished.document["consistent"]) == (0, True)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["attempts"], blob["http_status"]) == ("created", 2, 201)
    # Only a 500 leaves open whether the first attempt made a snapshot.
    assert (blob["message"] is not None) == (status == 500)


def test_a_request_to_a_server_that_is_busy_twice_is_refused_and_retryable(machine: Machine) -> None:
    finished = take(machine, Refuses(429, "TooManyRequests"))
    assert finished.status == 1
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["http_status"], blob["error_code"]) == ("refused", 429, "TooManyRequests")
    assert (blob["attempts"], blob["retryable"]) == (2, True)
    assert finished.document["window_ms"] < 500


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AuthorizationFailure"),
        (404, "BlobNotFound"),
        (409, "SnapshotCountExceeded"),
        (409, "SnapshotOperationRateExceeded"),
        (412, "ConditionNotMet"),
    ],
)
def test_a_refusal_is_not_retried_and_reported_with_its_code(
    machine: Machine, status: int, code: str
) -> None:
    finished = take(machine, Refuses(status, code, message="No & <never>."), Creates())
    assert finished.status == 1
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["http_status"], blob["error_code"]) == ("refused", status, code)
    assert (blob["attempts"], blob["message"]) == (1, "No & <never>.")
    assert len(machine.server.requests()) == 1
    assert code in finished.document["why"]


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nx-ms-snapshot: 2026-11-22T10\r\n :26:21.8190000Z\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nx-ms-snapshot: 1\r\nx-ms-snapshot: 2\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nx-ms-snapshot 2026-11-22T10:26:21.8190000Z\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nx-ms-snapshot: 2026-11-22T10:26:21\x01Z\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nx-ms-snapshot: 2026\rX-A: b\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nX-A : a\r\nx-ms-snapshot: 2026\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=[
        "not HTTP",
        "without a snapshot's time",
        "folded time",
        "two times",
        "time without a colon",
        "control character in the time",
        "carriage return in the time",
        "another status",
    ],
)
def test_a_malformed_answer_is_unknown(machine: Machine, raw: bytes) -> None:
    finished = take(machine, Answers(raw))
    assert finished.status == 1
    assert_all_thawed_in_time(machine, finished.document)
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["error_code"], blob["snapshot"]) == ("unknown", "BadAnswer", None)


SNAPSHOT = b"x-ms-snapshot: 2026-11-22T10:26:21.8190000Z\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 201 Created\r\nX-Appliance : a\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\nX Appliance: a\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\nno colon\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\nX-Appliance: a\x01b\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\nX-Appliance: a\xffb\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\nX-Appliance: a,\r\n b\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\n" + SNAPSHOT + SNAPSHOT + EMPTY,
        b"HTTP/1.1 201 Created\r\n" + SNAPSHOT + b"Content-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 201\r\n" + SNAPSHOT + EMPTY,
        b"HTTP/1.0 201 Created\r\n" + SNAPSHOT + b"\r\n",
        b"HTTP/1.1 201 Created\r\n" + b"a:\r\n" * 15_000 + SNAPSHOT + EMPTY,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n" + SNAPSHOT + EMPTY,
    ],
    ids=[
        "blank before the colon",
        "blank in a name",
        "line without a colon",
        "control character in a value",
        "byte above ASCII in a value",
        "folded value",
        "the same time twice",
        "body that is too short",
        "no reason phrase",
        "HTTP/1.0 without a length",
        "15,000 headers",
        "interim answer before",
    ],
)
def test_an_oddity_in_the_head_of_a_good_answer_does_not_hide_its_snapshot(
    machine: Machine, raw: bytes
) -> None:
    finished = take(machine, Answers(raw, then_closes=True))
    (blob,) = finished.document["blobs"]
    assert (blob["outcome"], blob["error_code"], blob["attempts"]) == ("created", None, 1)
    assert blob["snapshot"] == "2026-11-22T10:26:21.8190000Z"
    assert finished.document["consistent"] is True


def test_connections_that_the_server_closed_are_replaced_before_the_freeze(machine: Machine) -> None:
    # Azurite closes idle connections after some seconds, and so does the real service.
    uris = [machine.server.uri(blob) for blob in ("disk", "other")]
    program = """
        import sys, vmsnapshot
        mounts, uris = eval(sys.argv[1]), eval(sys.argv[2])
        def wait_at(step):
            print(step, flush=True)
            sys.stdin.readline()
        def progress(phase):
            if phase == "freeze":
                wait_at(phase)
        plan = vmsnapshot.plan(include=mounts)
        session = vmsnapshot.prepare(plan, blobs=uris, thaw_timeout=2.0, progress=progress)
        wait_at("prepared")
        print(session.run().to_json())
    """
    mounts = [f"mount={path}" for path in machine.mount_points]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), repr(mounts), repr(uris)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"prepared\n"
    assert machine.server.connections() == 2
    machine.server.close_idle_connections()
    process.stdin.write(b"go\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"freeze\n"
    # The window would dial again as well, but while the filesystems are frozen.
    assert machine.server.connections() == 4
    output, _ = process.communicate(b"go\n", timeout=20)
    assert b'"consistent":true' in output
    assert machine.server.connections() == 4
    assert [request.connection for request in machine.server.requests()] == [2, 3]


def test_a_connection_closed_after_its_answer_does_not_spoil_the_window(
    machine: Machine, fault_server: Any
) -> None:
    # The first server answers late. Meanwhile the second one closes its idle connection.
    server: FaultServer = fault_server(idle_close_seconds=0.1)
    machine.server.script("disk", Creates(after_ms=400))
    uris = [machine.server.uri("disk"), server.uri("other")]
    finished = take_snapshot(machine.mount_points, uris, thaw_timeout=2.0)
    assert (finished.status, finished.document["consistent"]) == (0, True)


def test_an_unreachable_server_is_an_error_before_anything_is_frozen(machine: Machine) -> None:
    server_port = machine.server.port
    machine.server.stop()
    start = time.monotonic()
    finished = take_snapshot(machine.mount_points, [machine.server.uri("disk")])
    assert (finished.status, finished.error_code) == (1, "connect-failed")
    assert str(server_port) in finished.errors
    assert time.monotonic() - start < 5.0
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 1000.0
