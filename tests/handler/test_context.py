"""A handler process reads each settings file once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.handler.handler_environment import make_environment
from vmsnapshot.handler import commands, context, workers
from vmsnapshot.handler.agent.state import State
from vmsnapshot.handler.context import Context
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.configuration import Applications, VmBackupConfiguration
from vmsnapshot.handler.machine.processes import ProcessName
from vmsnapshot.handler.settings.envelope import Envelope, read_envelope

KILLED = ProcessName(pid=1, start_ticks=1, boot_id="another boot")


@pytest.fixture
def here(tmp_path: Path) -> Context:
    """The context of a command whose sequence number is 7."""
    base = tmp_path / "Publisher.VMSnapshotLinux-1.0"
    environment = make_environment(base)
    state = State(base, tmp_path, unique_machine_file=base / "machine")
    environ = {"ConfigSequenceNumber": "7"}
    return Context(environment, environ, VmBackupConfiguration(), Log(None, "test"), state)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each settings file was read, and whatever else a report needs."""
    counted: Counter[str] = Counter()

    def count_envelope(path: Path) -> Envelope:
        counted[path.name] += 1
        return read_envelope(path)

    def count_applications() -> Applications:
        counted["applications"] += 1
        return Applications()

    def count_facts(*_: object, **__: object) -> list[tuple[str, str]]:
        counted["facts"] += 1
        return [("osVersion", "test")]

    monkeypatch.setattr(context, "read_envelope", count_envelope)
    monkeypatch.setattr(context, "read_applications", count_applications)
    monkeypatch.setattr(context, "machine_facts", count_facts)
    # No process is started, and nothing on this machine is thawed.
    monkeypatch.setattr(commands, "start_worker", lambda *_, **__: True)
    for module in (commands, workers):
        monkeypatch.setattr(module, "start_mending", lambda *_: True)
    monkeypatch.setattr(workers, "thaw_leftovers", lambda _log: None)
    return counted


def put_settings(here: Context, number: int) -> None:
    public = {"taskId": f"task-{number}", "statusBlobUri": "https://h/c/status?sig=AAAA"}
    document = {"runtimeSettings": [{"handlerSettings": {"publicSettings": public}}]}
    here.environment.files_of(number).settings.write_text(json.dumps(document))


def test_enable_reads_the_settings_of_each_job_once(here: Context, reads: Counter[str]) -> None:
    for number in (5, 6, 7):
        put_settings(here, number)
    for number in (5, 6):
        here.state.record_worker(number, KILLED, f"task-{number}")
    commands.enable(here)
    assert reads == {
        "5.settings": 1,
        "6.settings": 1,
        "7.settings": 1,
        "applications": 1,
        "facts": 1,
    }


def test_enable_reads_the_settings_of_its_own_killed_job_once(here: Context, reads: Counter[str]) -> None:
    put_settings(here, 7)
    here.state.record_worker(7, KILLED, "task-7")
    here.state.remember_sequence_number(7)
    commands.enable(here)
    assert reads["7.settings"] == 1


def test_mending_takes_the_settings_that_were_read_when_the_killed_job_was_found(
    here: Context, reads: Counter[str]
) -> None:
    put_settings(here, 5)
    here.state.record_worker(5, KILLED, "task-5")
    assert workers.mend(here, workers.killed_jobs(here)) == {5}
    assert reads["5.settings"] == 1


def test_one_process_mends_the_reports_of_all_killed_jobs(
    here: Context, reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 4, 5, 6):
        put_settings(here, number)
        here.state.record_worker(number, KILLED, f"task-{number}")
    started: list[list[tuple[int, str | None]]] = []

    def start_mending(_: Context, jobs: list[tuple[int, str | None]]) -> bool:
        started.append(jobs)
        return True

    monkeypatch.setattr(workers, "start_mending", start_mending)
    assert workers.mend(here, workers.killed_jobs(here)) == {3, 4, 5, 6}
    assert [sorted(jobs) for jobs in started] == [[(number, f"task-{number}") for number in (3, 4, 5, 6)]]
    assert reads["facts"] <= 1
