"""The life of the extension under the real agent: its reports, its snapshots, and the state of the disks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from tests.agent.vm import ERROR, SUCCESS, TRANSITIONING, Vm, job_status, repacked
from tests.support.wire_server import DO_SNAPSHOT, PRE_SNAPSHOT, BackupAnswer, Requested

HOST_ITEM = {
    "isSuccessful": "true",
    "snapshotUri": "https://disks.example/os?snapshot=2030-01-01T00:00:00.0000000Z",
    "errorMessage": None,
    "statusCode": 200,
}


def test_each_job_is_done_once_whatever_its_cipher_and_however_often_the_agent_starts(vm: Vm) -> None:
    # The first goal state installs, and has a job encrypted with 3DES. The guest takes the snapshots.
    status_blob = vm.create_status_blob()
    vm.ask(vm.job(7, status_blob=status_blob))
    vm.agent.start()
    done = vm.wait_until_done()
    assert (done.sequence_number, done.status, done.code) == (7, "success", SUCCESS), vm.log()
    assert vm.snapshot_counts() == [1, 1]
    assert vm.frozen_disks() == [False, False]
    assert [item["isSuccessful"] for item in done.snapshots] == [True, True]
    assert done.telemetry["hostStatusCodePreSnapshot"] == "404"
    # Azure Backup reads the same report in the blob.
    assert vm.read_status_blob()["status"] == done.report["status"]
    assert vm.settings(7).keys() == {"publicSettings", "protectedSettingsCertThumbprint"}

    # A restarted agent runs enable again.
    vm.agent.stop()
    vm.agent.start()
    again = vm.wait_until_done()
    assert vm.agent.commands() == ["install", "enable", "enable"]
    assert (again.sequence_number, again.code) == (7, SUCCESS)
    assert vm.snapshot_counts() == [1, 1]
    assert vm.settings(7).keys() == {"publicSettings", "protectedSettingsCertThumbprint"}

    # The next job is encrypted as on a VM in FIPS mode.
    vm.ask(vm.job(8, cipher="aes-256-cbc"))
    done = vm.wait_until_done()
    assert (done.sequence_number, done.status, done.code) == (8, "success", SUCCESS), vm.log()
    assert vm.snapshot_counts() == [2, 2]
    assert vm.frozen_disks() == [False, False]
    signature = urllib.parse.parse_qs(status_blob.partition("?")[2])["sig"][0]
    assert vm.files_with(signature) == vm.files_with(urllib.parse.quote(signature, safe="")) == []

    # The goal state no longer has the extension: the agent deletes it without a command.
    vm.wire_server.request(None)
    assert vm.agent.round().handler is None
    assert vm.agent.versions() == []
    vm.wait_until_idle()


def test_an_update_and_a_downgrade_carry_the_state_over_and_repeat_no_job(vm: Vm, tmp_path: Path) -> None:
    newer = "99.0.0"
    package = vm.wire_server.packages[vm.version]
    vm.wire_server.publish(newer, repacked(package, vm.version, newer, tmp_path))
    job = vm.job(3)
    vm.ask(job)
    vm.agent.start()
    assert vm.wait_until_done().code == SUCCESS, vm.log()
    remembered = vm.remembered(vm.version)
    assert (len(remembered), remembered["mrseq"]) == (3, "3")

    vm.ask(job, version=newer)
    updated = job_status(vm.agent.round())
    assert vm.agent.commands()[2:] == ["disable", "update", "uninstall", "install", "enable"]
    assert vm.agent.versions() == [newer]
    assert vm.remembered(newer) == remembered
    assert (updated.sequence_number, updated.code) == (3, SUCCESS)

    vm.ask(job, version=vm.version)
    downgraded = job_status(vm.agent.round())
    assert vm.agent.commands()[7:] == ["disable", "update", "uninstall", "install", "enable"]
    assert vm.agent.versions() == [vm.version]
    assert vm.remembered(vm.version) == remembered
    assert (downgraded.sequence_number, downgraded.code) == (3, SUCCESS)
    assert vm.snapshot_counts() == [1, 1]
    vm.wait_until_idle()


def test_the_host_takes_the_snapshots_of_frozen_disks_and_uninstall_leaves_only_logs(vm: Vm) -> None:
    with held_by_the_host(vm):
        pass
    done = vm.wait_until_done()
    assert (done.status, done.code) == ("success", SUCCESS), vm.log()
    assert [item["snapshotUri"] for item in done.snapshots] == [HOST_ITEM["snapshotUri"]]
    assert vm.snapshot_counts() == [0, 0]
    assert vm.frozen_disks() == [False, False]

    vm.wire_server.request(Requested(vm.version, "uninstall"))
    assert vm.agent.round().handler is None
    assert vm.agent.commands() == ["install", "enable", "disable", "uninstall"]
    assert vm.agent.versions() == []
    assert vm.log() != ""
    vm.wait_until_idle()


def test_disable_waits_for_a_job_in_its_window_and_the_job_is_reported(vm: Vm) -> None:
    with held_by_the_host(vm):
        vm.ask(vm.job(1), state="disabled")
        vm.agent.begin_round()
        wait_until(lambda: vm.agent.commands()[-1] == "disable", "the agent does not disable")
        # The worker has a snapshot in progress and has to thaw, so disable must not kill it.
        assert vm.frozen_disks() == [True, True]
    handler = vm.agent.end_round().handler
    assert handler is not None
    assert (handler["status"], handler["formattedMessage"]["message"]) == ("NotReady", "Plugin disabled")
    assert vm.frozen_disks() == [False, False]
    assert vm.read_status_blob()["status"]["code"] == SUCCESS
    assert vm.agent_is_alone()

    # Enabled again with the same number, there is nothing to do.
    vm.ask(vm.job(1))
    assert vm.wait_until_done().code == SUCCESS
    assert host_calls(vm) == 1


def test_a_job_outlives_the_agent_and_is_not_begun_again_by_the_next_one(vm: Vm) -> None:
    with held_by_the_host(vm):
        vm.agent.stop()
        vm.agent.start()
        assert job_status(vm.agent.round()).code == TRANSITIONING
        assert vm.agent.commands() == ["install", "enable", "enable"]
        assert vm.frozen_disks() == [True, True]
    assert vm.wait_until_done().code == SUCCESS, vm.log()
    assert host_calls(vm) == 1
    assert vm.frozen_disks() == [False, False]


def test_a_killed_job_leaves_nothing_frozen_and_the_next_enable_reports_it(vm: Vm) -> None:
    with held_by_the_host(vm):
        os.kill(vm.worker_pid(), signal.SIGKILL)
        wait_until(lambda: vm.frozen_disks() == [False, False], "the disks stayed frozen")
    vm.agent.stop()
    vm.agent.start()
    done = vm.wait_until_done()
    assert (done.sequence_number, done.code) == (1, ERROR), vm.log()
    assert host_calls(vm) == 1
    blob = vm.read_status_blob()["status"]
    assert (blob["status"], blob["code"]) == ("error", ERROR)


def test_a_vm_restored_from_a_backup_takes_a_known_number_for_a_new_job(vm: Vm) -> None:
    vm.ask(vm.job(5))
    vm.agent.start()
    first = vm.wait_until_done()
    # Another VM with the disks of this one.
    vm.agent.stop()
    vm.wire_server.role_guid = "c0ffee00-0000-4000-8000-000000000009"
    vm.ask(vm.job(5))
    vm.agent.start()
    second = vm.wait_until_done()
    assert vm.snapshot_counts() == [2, 2], vm.log()
    machines = [done.report["status"]["uniqueMachineId"] for done in (first, second)]
    assert machines == ["c0ffee00-0000-4000-8000-000000000001", vm.wire_server.role_guid]


@contextlib.contextmanager
def held_by_the_host(vm: Vm) -> Iterator[None]:
    """Starts job 1, whose snapshots the host takes. The disks are frozen until the block ends."""
    answer = threading.Event()
    vm.wire_server.backup_answers[PRE_SNAPSHOT] = BackupAnswer(200, {"bhsVersion": "1"})
    vm.wire_server.backup_answers[DO_SNAPSHOT] = BackupAnswer(
        200, {"snapshotInfo": [HOST_ITEM]}, wait_for=answer
    )
    try:
        vm.ask(vm.job(1, status_blob=vm.create_status_blob()))
        vm.agent.start()
        assert job_status(vm.agent.round()).code == TRANSITIONING
        wait_until(lambda: host_calls(vm) == 1, "the host was not asked for snapshots")
        assert vm.frozen_disks() == [True, True]
        yield
    finally:
        answer.set()


def host_calls(vm: Vm) -> int:
    """Returns how often the host was asked for snapshots."""
    return sum(request.path == DO_SNAPSHOT for request in vm.wire_server.backup_requests)


def wait_until(is_so: Callable[[], bool], problem: str, *, limit_seconds: float = 15.0) -> None:
    """Waits until ``is_so`` returns true. Fails with ``problem`` at the limit."""
    until = time.monotonic() + limit_seconds
    while not is_so():
        assert time.monotonic() < until, problem
        time.sleep(0.005)
