"""What the handler remembers between jobs, and how it notices killed workers and a restored VM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmsnapshot.handler.agent.state import MACHINE_FILE, SEQUENCE_FILE, TASK_FILE, State, carry_over
from vmsnapshot.handler.machine.processes import ProcessName, name_of

OURS = "{3f0c1a52-7b1e-4d0c-9a55-0d6f2c9be411}"
THEIRS = "{00000000-0000-4000-8000-000000000001}"


class Machine:
    """A VM's directories, with the identity that the agent wrote to them."""

    def __init__(self, root: Path) -> None:
        self.lib = root / "lib"
        self.base = self.lib / "Publisher.VMSnapshotLinux-1.0.0"
        self.base.mkdir(parents=True)
        self.unique_machine_file = root / "machine_identity"

    @property
    def state(self) -> State:
        return State(self.base, self.lib, unique_machine_file=self.unique_machine_file)

    def be(self, role_guid: str) -> None:
        text = f'<HostingEnvironmentConfig><Role guid="{role_guid}" name="x" /></HostingEnvironmentConfig>'
        (self.lib / "HostingEnvironmentConfig.xml").write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.be(OURS)
    return machine


def test_sequence_number_is_remembered_as_the_reference_writes_it(machine: Machine) -> None:
    assert machine.state.last_sequence_number is None
    machine.state.remember_sequence_number(7)
    assert (machine.base / SEQUENCE_FILE).read_text() == "7"
    assert machine.state.last_sequence_number == 7


@pytest.mark.parametrize("text", ["", "-1", "seven", "7.0", "9" * 5000, "\u0667"])
def test_invalid_sequence_number_is_ignored(machine: Machine, text: str) -> None:
    (machine.base / SEQUENCE_FILE).write_text(text)
    assert machine.state.last_sequence_number is None


def test_new_vm_is_no_restored_one(machine: Machine) -> None:
    machine.state.remember_sequence_number(7)
    assert not machine.state.notice_restore()
    assert (machine.base / MACHINE_FILE).read_text() == OURS
    assert machine.state.last_sequence_number == 7


def test_restored_vm_forgets_the_other_ones_job(machine: Machine) -> None:
    machine.state.notice_restore()
    machine.state.remember_sequence_number(7)
    machine.state.remember_task_id("task")
    machine.be(THEIRS)
    assert machine.state.notice_restore()
    assert machine.state.last_sequence_number is None
    assert machine.state.last_task_id is None
    assert not machine.state.notice_restore()


def test_identity_that_cannot_be_read_is_no_other_vm(machine: Machine) -> None:
    machine.state.notice_restore()
    (machine.lib / "HostingEnvironmentConfig.xml").unlink()
    assert not machine.state.notice_restore()
    assert (machine.base / MACHINE_FILE).read_text() == OURS


def test_unique_machine_id_is_known_from_the_first_and_follows_a_restore(machine: Machine) -> None:
    assert machine.state.unique_machine_id() == OURS[1:-1]
    assert machine.unique_machine_file.read_text() == OURS[1:-1]
    machine.be(THEIRS)
    assert machine.state.unique_machine_id() == THEIRS[1:-1]


def test_unknown_machine_id_is_not_kept(machine: Machine) -> None:
    (machine.lib / "HostingEnvironmentConfig.xml").unlink()
    assert machine.state.unique_machine_id() == ""
    machine.be(OURS)
    assert machine.state.unique_machine_id() == OURS[1:-1]


def test_what_is_remembered_is_carried_over_and_replaces_nothing(machine: Machine) -> None:
    machine.state.notice_restore()
    machine.state.remember_sequence_number(7)
    machine.state.remember_task_id("task")
    target = machine.lib / "Publisher.VMSnapshotLinux-1.0.1"
    target.mkdir()
    (target / SEQUENCE_FILE).write_text("8")
    assert carry_over(machine.base, target) == [TASK_FILE, MACHINE_FILE]
    assert (target / SEQUENCE_FILE).read_text() == "8"
    assert State(target, machine.lib).last_task_id == "task"
    assert carry_over(machine.base, target) == []


def test_worker_is_running_until_it_is_killed(machine: Machine) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        name = name_of(process.pid)
        assert name is not None
        assert machine.state.record_worker(7, name, "task")
        [record] = machine.state.workers()
        assert (record.sequence_number, record.task_id) == (7, "task")
        assert record.is_running()
    finally:
        process.kill()
        process.communicate()
    assert not record.is_running()
    record.forget()
    assert machine.state.workers() == []


def test_reused_process_id_is_no_running_worker() -> None:
    name = name_of(os.getpid())
    assert name is not None
    assert name.is_alive()
    assert not ProcessName(name.pid, name.start_ticks + 1, name.boot_id).is_alive()
    assert not ProcessName(name.pid, name.start_ticks, "another boot").is_alive()


def test_record_that_cannot_be_read_is_that_of_a_killed_worker(machine: Machine) -> None:
    directory = machine.base / "workers"
    directory.mkdir()
    texts = ["", "[]", "{}", '{"taskId": "task", "pid": "x", "startTicks": 1, "bootId": ""}']
    for number, text in enumerate(texts):
        (directory / f"{number}.json").write_text(text)
    (directory / "notes.json").write_text("{}")
    records = machine.state.workers()
    assert [record.sequence_number for record in records] == [0, 1, 2, 3]
    assert not any(record.is_running() for record in records)
    assert records[3].task_id == "task"


def test_failed_write_returns_false(machine: Machine) -> None:
    (machine.base / "workers").write_text("")
    (machine.base / SEQUENCE_FILE).mkdir()
    assert not machine.state.record_worker(7, name_of(os.getpid()), None)
    assert not machine.state.remember_sequence_number(7)


def test_process_is_asked_to_end_before_it_is_killed() -> None:
    program = (
        "import signal, sys; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(1, flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    name = name_of(process.pid)
    assert name is not None
    assert name.end(patience_seconds=10.0)
    process.communicate()
    assert process.returncode == 0


def test_process_that_does_not_end_is_killed() -> None:
    program = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    name = name_of(process.pid)
    assert name is not None
    assert not name.end(patience_seconds=0.05)
    process.communicate()
    assert process.returncode == -9
