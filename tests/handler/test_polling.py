"""The polling service: when it polls, and how it judges the host's answers and the engine's reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vmsnapshot
from tests.handler.machine.fake_machine import FakeMachine, mounted
from tests.support import processes
from tests.support.host_service import Answer, HostService
from vmsnapshot.errors import PlanError, PrepareError
from vmsnapshot.handler import polling
from vmsnapshot.handler.freeze.lock import LockHeldError
from vmsnapshot.handler.log import HOST_BASED_EXTENSION_LOG
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.host import HOST_VARIABLE
from vmsnapshot.handler.polling import (
    CHECK,
    Failure,
    Host,
    HostError,
    RequestError,
    failure_before_freeze,
    failure_of,
    is_frozen_and_called,
    parse_request,
    seconds_to_next_poll,
    usb_mounts,
)

INTERVAL_SECONDS = 0.1

# Runs the service with a short interval in a process of its own. These tests run outside of a sandbox, so
# that process exits instead of freezing if it ever gets a request.
POLL = """
import os, pathlib, sys
from vmsnapshot.handler import polling
polling.RestorePoint.take = lambda self: os._exit(99)
sys.exit(polling.run_polling(pathlib.Path(sys.argv[1]), os.environ, interval_seconds=float(sys.argv[2])))
"""


@dataclass(frozen=True)
class Call:
    """Has the attributes of `_native.HostCallOutcome`."""

    outcome: str = "answered"
    http_status: int | None = 200
    error_code: str | None = None
    message: str | None = None
    answer_ms: float | None = 12.0


@dataclass(frozen=True)
class Report:
    """Has the attributes of `_native.Report` that polling reads."""

    freeze_doubt_code: str | None = None
    freeze_doubt: str | None = None
    host_call: Call = field(default_factory=Call)


def code_of(report: Any) -> str | None:
    failure = failure_of(report)
    return failure.code if failure else None


class Poller:
    """The service as a process, which runs until `end`."""

    def __init__(self, base_directory: Path, address: str, interval_seconds: float) -> None:
        self.log_file = base_directory / HOST_BASED_EXTENSION_LOG
        folders = dict.fromkeys(("logFolder", "configFolder", "statusFolder"), str(base_directory))
        document = [{"name": "x", "version": 1.0, "handlerEnvironment": folders}]
        (base_directory / "HandlerEnvironment.json").write_text(json.dumps(document))
        self.process = subprocess.Popen(
            [sys.executable, "-c", POLL, str(base_directory), str(interval_seconds)],
            env={**os.environ, HOST_VARIABLE: address},
            stdin=subprocess.DEVNULL,
        )

    def end(self) -> int:
        """Sends it SIGTERM. Returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=10.0)

    def log(self) -> list[str]:
        return self.log_file.read_text().splitlines()


@pytest.fixture
def poller(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
    tmp_path: Path,
    service: HostService,
) -> Iterator[Poller]:
    poller = Poller(tmp_path, service.address, INTERVAL_SECONDS)
    yield poller
    processes.end(poller.process, limit_seconds=0.0)


# The loop.


def test_it_polls_at_once_and_again_and_again(poller: Poller, service: HostService) -> None:
    requests = service.wait_for(CHECK, 4)
    assert poller.end() == 0
    for request in requests:
        assert request.method == "GET"
        assert request.path == "/machine/plugins"
        assert request.query == {"comp": "xdisksvc", "type": "checkforsnapshot"}
        assert request.body == b""


def test_polls_keep_to_multiples_of_the_interval_however_long_one_takes() -> None:
    assert seconds_to_next_poll(0.0, 300.0) == 300.0
    assert seconds_to_next_poll(2.5, 300.0) == 297.5
    assert seconds_to_next_poll(310.0, 300.0) == 290.0
    # Never 0 s, which would make two polls in one interval.
    assert seconds_to_next_poll(600.0, 300.0) == 300.0


@pytest.mark.usefixtures("compiled_engine")
def test_it_ends_at_once_between_two_polls(tmp_path: Path, service: HostService) -> None:
    poller = Poller(tmp_path, service.address, 300.0)
    try:
        service.wait_for(CHECK)
        begun_at = time.monotonic()
        assert poller.end() == 0
        # Leaving the background may take five seconds.
        assert time.monotonic() - begun_at < 5.0
        assert poller.log()[-1].endswith("polling ended")
    finally:
        processes.end(poller.process, limit_seconds=0.0)


def test_the_same_trouble_is_logged_once_and_again_when_it_comes_back(
    poller: Poller, service: HostService
) -> None:
    service.wait_for(CHECK)
    service.script(CHECK, Answer(503), Answer(503), Answer(500), Answer(404), Answer(500), Answer(404))
    service.wait_for(CHECK, 10)
    assert poller.end() == 0
    troubles = [line.partition("the host answered ")[2][:3] for line in poller.log() if "answered" in line]
    assert troubles == ["503", "500", "500"]


def test_an_answer_that_is_no_request_is_logged_and_nothing_is_sent(
    poller: Poller, service: HostService
) -> None:
    service.wait_for(CHECK)
    service.script(CHECK, Answer(200, b"<html>"), Answer(200, b'{"luns": [1]}'), Answer(404))
    service.wait_for(CHECK, 5)
    assert poller.end() == 0
    text = "\n".join(poller.log())
    assert "JSON" in text
    assert "it has no snapshotId" in text
    assert [request.operation for request in service.requests() if request.operation != CHECK] == []


def test_a_host_that_does_not_answer_is_logged_once(poller: Poller, service: HostService) -> None:
    service.wait_for(CHECK)
    service.script(CHECK, Answer(drops_connection=True))
    service.wait_for(CHECK, 8)
    assert poller.end() == 0
    assert sum("did not answer" in line for line in poller.log()) == 1


# Calls outside the window.


def test_a_redirect_is_not_followed_and_no_proxy_is_used(
    service: HostService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    location = f"http://{service.address}/metadata/recsvc/snapshot/presnapshot"
    service.script(CHECK, Answer(302, headers=(("Location", location),)))
    with Background() as background:
        assert Host(service.address, background).call(CHECK) == (302, b"")
    assert [request.operation for request in service.requests()] == [CHECK]


def test_a_connection_that_is_dropped_is_no_answer(service: HostService) -> None:
    service.script(CHECK, Answer(drops_connection=True))
    with Background() as background, pytest.raises(HostError, match=CHECK):
        Host(service.address, background).call(CHECK)


# Requests.


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"luns": [0, 3]},
        {"ProtectedSettingsCertThumbprint": "AB"},
        {"extensionSettings": {"public": {}, "protected": {"loggingBlobSasUri": "https://a/b?sig=c"}}},
        {"extensionSettings": None, "luns": None},
    ],
)
def test_a_request_needs_an_id_and_may_have_settings(extra: dict[str, Any]) -> None:
    assert parse_request(json.dumps({"snapshotId": "S-1", **extra}).encode()) == "S-1"


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"{}", b'{"snapshotId": 7}', b'{"snapshotId": ""}', b"[" * 100_000]
)
def test_a_body_without_an_id_is_no_request(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(body)
    assert caught.value.code == "bad-request"


# What the host is told.


def test_a_frozen_run_that_was_answered_in_time_has_no_error() -> None:
    report: Any = Report()
    assert is_frozen_and_called(report)
    assert code_of(report) is None


def test_nothing_to_freeze_is_as_good_as_frozen() -> None:
    report: Any = Report("nothing-frozen", "nothing was frozen")
    assert is_frozen_and_called(report)
    assert code_of(report) is None


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (Report(host_call=Call(http_status=500)), "STARTSNAP_UNEXPECTED_STATUS_500"),
        (Report(host_call=Call(http_status=201)), "STARTSNAP_UNEXPECTED_STATUS_201"),
        (Report(host_call=Call("unknown", None, "NoAnswer", "no answer", None)), "STARTSNAP_HTTP_ERR"),
        (Report(host_call=Call("unknown", None, "BadAnswer", "no HTTP", 3.0)), "STARTSNAP_UNEXPECTED_EXC"),
        (Report(host_call=Call("unknown", None, "AnswerTooLong", "long", 3.0)), "STARTSNAP_UNEXPECTED_EXC"),
        (Report(host_call=Call("not-sent", None, "NotSent", "it was closed", 3.0)), "STARTSNAP_HTTP_ERR"),
        (Report(host_call=Call(answer_ms=8999.0)), None),
        (Report(host_call=Call(answer_ms=9000.0)), "SNAPSHOT_TOOK_TOO_LONG"),
        (Report("thawed-by-another", "another program thawed `/x`"), "SNAPSHOT_INCONSISTENT"),
        # That there is no snapshot matters more than whether it would have been consistent.
        (Report("watchdog-fired", "x", Call(http_status=500)), "STARTSNAP_UNEXPECTED_STATUS_500"),
    ],
)
def test_a_run_that_called_the_host_is_judged_by_answer_freeze_and_time(
    report: Any, code: str | None
) -> None:
    assert is_frozen_and_called(report)
    assert code_of(report) == code


@pytest.mark.parametrize(
    "doubt", ["freeze-failed", "not-freezable", "frozen-by-another", "freeze-late", "freeze-hung"]
)
def test_a_freeze_that_failed_has_not_called_the_host(doubt: str) -> None:
    report: Any = Report(doubt, "x", Call("not-sent", None, "NotSent", None, None))
    assert not is_frozen_and_called(report)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            PrepareError("no route", code="connect-failed", kind="network", subject="callee"),
            "STARTSNAP_HTTP_ERR",
        ),
        (
            PrepareError("another run", code="another-run", kind="another-run", subject="run"),
            "INCOMPLETE_FREEZE",
        ),
        (LockHeldError("could not lock", code="lock-held", kind="another-run"), "INCOMPLETE_FREEZE"),
        (
            PrepareError("left frozen", code="left-frozen", kind="left-frozen", subject="run"),
            "UNEXPECTED_FREEZE_EXC",
        ),
        (
            PrepareError("no watchdog", code="no-watchdog", kind="system", subject="watchdog"),
            "UNEXPECTED_FREEZE_EXC",
        ),
        (PlanError("no mountinfo", code="unreadable", kind="system"), "UNEXPECTED_FREEZE_EXC"),
        (ValueError("secret?sig=abc"), "UNEXPECTED_FREEZE_EXC"),
    ],
)
def test_an_error_before_the_freeze_has_a_code_the_host_knows(error: Exception, code: str) -> None:
    failure = failure_before_freeze(error)
    assert failure.code == code
    assert "sig=abc" not in failure.message


def test_the_message_of_a_failure_is_the_cause() -> None:
    error = LockHeldError("could not lock `/x`: process 7 has it", code="lock-held", kind="another-run")
    assert failure_before_freeze(error) == Failure(
        "INCOMPLETE_FREEZE", "could not lock `/x`: process 7 has it"
    )


def test_every_subject_of_an_error_and_every_doubt_has_a_code(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    names = vmsnapshot._native.names()
    assert set(polling._PREPARE_ERRORS) == set(names["ErrorSubject"])
    assert set(polling._FREEZE_ERRORS) == {None, *names["FreezeDoubt"]}


# Disks.


def test_filesystems_on_usb_disks_are_left_out(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.scsi_disk("sda", "8:0", "f8b3781a-1e82-4818-a1c3-63d806ec15bb", 0)
    machine.partition("sda1", "8:1", of="sda")
    machine.scsi_disk("sdb", "8:16", "usb1/1-1/1-1:1.0", 0)
    machine.partition("sdb1", "8:17", of="sdb")
    root, stick, proc = mounted("8:1", "/"), mounted("8:17", "/stick"), mounted("0:30", "/proc", "proc")
    assert usb_mounts(machine.read(root, stick, proc)) == [stick]
