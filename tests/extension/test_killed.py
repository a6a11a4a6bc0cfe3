"""A worker, or the command that starts it, is killed: nothing stays frozen, and the job is reported."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.extension.conftest import OTHER_VM, Job, Vm, final, message, worker_of, workers_of
from tests.support.control_groups import ENTER, control_group
from tests.support.freezing import is_frozen
from tests.support.host_service import NEVER_MS, USUAL, Answer, Usual
from tests.support.mounts import read_mounts
from tests.support.protected_settings import settings_file_text
from vmsnapshot.handler.workers import MENDING_LIMIT_SECONDS

NEVER = Answer(after_ms=NEVER_MS)
LATE = Usual(after_ms=1500.0)
ROUNDS = 20
SLOW_MS = 200.0


def kill_worker(vm: Vm) -> None:
    """Kills the worker with SIGKILL, as the kernel does when memory runs out."""
    os.kill(worker_of(vm), signal.SIGKILL)
    vm.extension.finish()


def killed_in_its_window(vm: Vm) -> Job:
    """Returns a job whose worker was killed while everything was frozen."""
    vm.service.script("dosnapshot", NEVER)
    job = vm.job(vm.new_number(), mode="onlyHost")
    # An earlier job of the same test has made such a request as well.
    earlier = len(vm.service.requests("dosnapshot"))
    job.enable()
    vm.service.wait_for("dosnapshot", earlier + 1)
    kill_worker(vm)
    assert not any(is_frozen(filesystem.mount_point) for filesystem in vm.filesystems)
    assert final(job.blob_report()) == ("success", "4", 1)
    vm.service.script("dosnapshot", USUAL)
    return job


def killed_before_it_reported_anything(vm: Vm) -> Job:
    """Returns a job whose worker was killed before the host answered PreSnapshot."""
    vm.service.script("presnapshot", NEVER)
    job = vm.job(vm.new_number(), mode="onlyHost")
    earlier = len(vm.service.requests("presnapshot"))
    job.enable()
    vm.service.wait_for("presnapshot", earlier + 1)
    kill_worker(vm)
    assert vm.service.content(job.status_blob) == b""
    vm.service.script("presnapshot", USUAL)
    return job


def assert_reported_as_killed(vm: Vm, job: Job, number: int) -> None:
    """Checks that file and blob report the killed job, and that no second snapshot was taken."""
    for report in (vm.extension.report(number), job.blob_report()):
        assert final(report) == ("error", "2", 2)
        assert "ended before it could report" in message(report)
    assert len(vm.service.requests("dosnapshot")) <= 1


@pytest.mark.parametrize("kill", [killed_in_its_window, killed_before_it_reported_anything])
def test_same_number_again_reports_a_killed_job(vm: Vm, kill: object) -> None:
    assert callable(kill)
    job: Job = kill(vm)
    job.enable()
    vm.extension.finish()
    assert_reported_as_killed(vm, job, job.number)
    assert 'protectedSettings"' not in vm.extension.settings_text(job.number)
    # Another enable changes nothing.
    before = vm.service.content(job.status_blob), vm.extension.status_file(job.number).read_text()
    job.enable()
    vm.extension.finish()
    assert (vm.service.content(job.status_blob), vm.extension.status_file(job.number).read_text()) == before


@pytest.mark.parametrize("is_disabled_between", [False, True])
def test_same_task_under_a_new_number_reports_a_killed_job(vm: Vm, is_disabled_between: bool) -> None:
    job = killed_in_its_window(vm)
    if is_disabled_between:
        vm.extension.run("disable")
    number = vm.new_number()
    vm.extension.enable(number, job.settings(), job.protected)
    vm.extension.finish()
    assert_reported_as_killed(vm, job, number)


def test_same_task_under_a_new_number_gets_the_report_of_the_status_file(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    vm.service.script(job.status_blob, USUAL, NEVER, operation="PUT")
    job.enable()
    vm.extension.wait_for_code(job.number, "1")
    kill_worker(vm)
    assert final(job.blob_report()) == ("success", "4", 1)
    vm.service.script(job.status_blob, USUAL, operation="PUT")
    number = vm.new_number()
    vm.extension.enable(number, job.settings(), job.protected)
    vm.extension.finish()
    assert final(vm.extension.report(number)) == ("success", "1", 1)
    assert job.blob_report() == vm.extension.report(number)
    assert len(vm.service.requests("dosnapshot")) == 1


def test_final_status_that_was_not_uploaded_is_sent_again(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    vm.service.script(job.status_blob, USUAL, Answer(503), operation="PUT")
    job.enable()
    vm.extension.finish()
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    assert final(job.blob_report()) == ("success", "4", 1)
    vm.service.script(job.status_blob, USUAL, operation="PUT")
    job.enable()
    vm.extension.finish()
    assert job.blob_report() == vm.extension.report(job.number)


def test_update_carries_the_record_of_a_killed_job_over(vm: Vm) -> None:
    job = killed_in_its_window(vm)
    base = vm.extension.base_directory
    inside = vm.extension.sandbox.path(base.with_name(base.name.rpartition("-")[0] + "-3.0"))
    inside.mkdir()
    vm.extension.run("update", job.number, VERSION="3.0", AZURE_GUEST_AGENT_UPDATING_FROM_VERSION="3.0")
    assert (inside / f"workers/{job.number}.json").exists()


@pytest.mark.parametrize("verb", ["disable", "uninstall"])
def test_next_command_writes_the_status_file_of_a_killed_job(vm: Vm, verb: str) -> None:
    job = killed_in_its_window(vm)
    assert vm.extension.run(verb, 0).status == 0
    assert final(vm.extension.report(job.number)) == ("error", "2", 2)
    # The agent sends the settings again, and with them the blob's URI.
    job.enable()
    vm.extension.finish()
    assert_reported_as_killed(vm, job, job.number)


def test_killed_job_does_not_prevent_the_next_one(vm: Vm) -> None:
    killed = killed_in_its_window(vm)
    job = vm.job(vm.new_number(), mode="onlyHost")
    assert final(job.run()) == ("success", "1", 1)
    assert not vm.extension.status_file(killed.number).exists()


def test_final_report_of_a_worker_killed_later_is_not_changed(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    vm.service.script(job.logs_blob, USUAL, NEVER, operation="PUT")
    job.enable()
    until_final(vm, job)
    kill_worker(vm)
    vm.service.script(job.logs_blob, USUAL)
    job.enable()
    vm.extension.finish()
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    assert final(job.blob_report()) == ("success", "1", 1)
    assert len(vm.service.requests("dosnapshot")) == 1


def test_second_final_report_is_written_for_a_worker_killed_after_the_first(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    vm.service.script(job.status_blob, USUAL, NEVER, operation="PUT")
    job.enable()
    vm.extension.wait_for_code(job.number, "1")
    kill_worker(vm)
    assert final(job.blob_report()) == ("success", "4", 1)
    vm.service.script(job.status_blob, USUAL, operation="PUT")
    job.enable()
    vm.extension.finish()
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    assert job.blob_report() == vm.extension.report(job.number)


def test_job_of_an_enable_killed_before_it_started_a_worker_is_reported(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    # The state after the first file that enable writes.
    base = vm.extension.sandbox.path(vm.extension.base_directory)
    (base / "mrseq").write_text(str(job.number))
    job.enable()
    vm.extension.finish()
    assert_reported_as_killed(vm, job, job.number)


def test_job_whose_record_a_crash_of_the_machine_emptied_is_reported(vm: Vm) -> None:
    job = killed_in_its_window(vm)
    record = vm.extension.base_directory / f"workers/{job.number}.json"
    assert json.loads(vm.extension.sandbox.path(record).read_text())["taskId"] == job.public["taskId"]
    vm.extension.sandbox.path(record).write_text("")
    job.enable()
    vm.extension.finish()
    assert_reported_as_killed(vm, job, job.number)


def test_restored_vm_does_not_report_the_job_that_took_its_snapshot(vm: Vm) -> None:
    job = killed_in_its_window(vm)
    vm.extension.be(OTHER_VM)
    job.enable()
    vm.extension.finish()
    # For the restored VM, the same number is a new job.
    assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    assert "ended before" not in vm.extension.log().rpartition("restored from another")[2]


def test_job_ended_while_it_decrypts_is_reported(vm: Vm) -> None:
    # Decryption is slow here, so that the signal arrives during it.
    openssl = vm.extension.sandbox.path("/usr/local/bin/slow-openssl")
    openssl.write_text('#!/bin/sh\nsleep 1\nexec /usr/bin/openssl "$@"\n')
    openssl.chmod(0o755)
    configuration = vm.extension.sandbox.path("/etc/waagent.conf")
    configuration.write_text("OS.OpensslPath=/usr/local/bin/slow-openssl\n")
    try:
        job = vm.job(vm.new_number(), mode="onlyHost")
        job.enable()
        worker_of(vm)
        assert vm.extension.run("disable").status == 0
    finally:
        configuration.unlink()
    assert final(vm.extension.report(job.number))[:2] == ("error", "2")
    assert final(job.blob_report())[:2] == ("error", "2")
    assert vm.service.requests("dosnapshot") == []


def test_worker_survives_the_end_of_the_control_group_of_enable(vm: Vm) -> None:
    vm.service.script("presnapshot", LATE)
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    vm.extension.write_settings(job.number, settings_file_text(job.settings(), job.protected))
    with control_group() as group:
        finished = vm.extension.sandbox.run(
            *(*ENTER, group, vm.extension.base_directory / "bin/handler", "enable"),
            directory=vm.extension.base_directory,
            environment={
                "ConfigSequenceNumber": str(job.number),
                "AZURE_GUEST_AGENT_EXTENSION_PATH": str(vm.extension.base_directory),
            },
        )
        assert (finished.status, finished.errors) == (0, "")
        vm.service.wait_for("presnapshot")
        # A service manager that ends a service kills its whole group.
        (group / "cgroup.kill").write_text("1")
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)


@pytest.mark.timeout(180)
def test_worker_survives_a_service_that_ends_as_soon_as_enable_has_returned(vm: Vm) -> None:
    base = vm.extension.base_directory
    # Many rounds, because a worker that moves late is killed only sometimes.
    for _ in range(ROUNDS):
        job = vm.job(vm.new_number(), disks=1, mode="onlyHost")
        vm.extension.write_settings(job.number, settings_file_text(job.settings(), job.protected))
        with control_group() as group:
            finished = vm.extension.sandbox.run(
                *(*ENTER, group, base / "bin/handler", "enable"),
                directory=base,
                environment={
                    "ConfigSequenceNumber": str(job.number),
                    "AZURE_GUEST_AGENT_EXTENSION_PATH": str(base),
                },
            )
            (group / "cgroup.kill").write_text("1")
            assert (finished.status, finished.errors) == (0, "")
        vm.extension.finish()
        assert final(job.blob_report()) == ("success", "1", 1)
    assert own_groups() == set()


def test_command_removes_the_control_group_of_a_killed_worker(vm: Vm) -> None:
    killed_in_its_window(vm)
    assert {group.name.rpartition("-")[0] for group in own_groups()} == {"vmsnapshot-worker"}
    vm.extension.run("disable")
    assert own_groups() == set()


def killed_with_settings(vm: Vm) -> Job:
    """Returns a killed job whose settings the agent has written again, so that they name its status blob."""
    job = killed_in_its_window(vm)
    write_settings_again(vm, job)
    return job


def write_settings_again(vm: Vm, job: Job) -> None:
    """Writes the settings that the worker has scrubbed, as the agent does."""
    vm.extension.write_settings(job.number, settings_file_text(job.settings(), job.protected))


@pytest.mark.parametrize("verb", ["disable", "uninstall"])
def test_disable_waits_until_the_report_of_a_killed_job_is_mended(vm: Vm, verb: str) -> None:
    job = killed_with_settings(vm)
    vm.service.script(job.status_blob, Usual(after_ms=1000.0), operation="PUT")
    assert vm.extension.run(verb).status == 0
    assert vm.extension.sandbox.process_ids() == []
    assert final(job.blob_report()) == ("error", "2", 2)


def killed_together(vm: Vm, count: int) -> list[Job]:
    """Returns jobs whose workers were killed at the same time, and whose settings name their status blobs."""
    vm.service.script("presnapshot", NEVER)
    jobs = [vm.job(vm.new_number(), disks=1, mode="onlyHost") for _ in range(count)]
    for job in jobs:
        job.enable()
    vm.service.wait_for("presnapshot", count)
    for pid in workers_of(vm):
        os.kill(pid, signal.SIGKILL)
    vm.extension.finish()
    vm.service.script("presnapshot", USUAL)
    vm.service.forget_requests()
    for job in jobs:
        assert vm.service.content(job.status_blob) == b""
        write_settings_again(vm, job)
    return jobs


def assert_each_reported_as_killed(vm: Vm, jobs: list[Job]) -> None:
    """Checks that each job has a report of its own, in its own status file and status blob."""
    for job in jobs:
        assert_reported_as_killed(vm, job, job.number)
        assert (
            job.blob_report()["taskId"] == vm.extension.report(job.number)["taskId"] == job.public["taskId"]
        )


def test_two_jobs_killed_in_turn_are_both_reported(vm: Vm) -> None:
    jobs = [killed_with_settings(vm), killed_with_settings(vm)]
    assert vm.extension.run("disable").status == 0
    for job in jobs:
        assert final(job.blob_report()) == ("error", "2", 2)
        assert job.blob_report()["taskId"] == job.public["taskId"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [2, 5])
def test_jobs_killed_together_are_mended_in_turn_whatever_commands_come_at_once(vm: Vm, count: int) -> None:
    jobs = killed_together(vm, count)
    for job in jobs:
        vm.service.script(job.status_blob, Usual(after_ms=SLOW_MS), operation="PUT")
    # The first one starts two processes: one for its own job, and one for the others.
    commands = [vm.extension.popen("enable", jobs[-1].number) for _ in range(4)]
    for command in commands:
        assert command.wait(timeout=30) == 0
    vm.extension.finish()
    assert_each_reported_as_killed(vm, jobs)
    requests = [request for request in vm.service.requests() if request.blob]
    assert len({request.blob for request in requests}) == count
    for earlier, later in zip(requests, requests[1:]):
        if earlier.blob != later.blob:
            # The next one begins after the answer to the last request of the one before.
            assert earlier.method == "PUT"
            assert later.at_ns - earlier.at_ns >= SLOW_MS * 1e6, "two processes mended at the same time"


def test_mending_waits_while_another_process_mends(vm: Vm) -> None:
    (job,) = killed_together(vm, 1)
    lock = os.open(vm.extension.sandbox.path(vm.extension.base_directory / "workers"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job.enable()
        (mending,) = workers_of(vm, b"mend")
        until_waiting_for(mending, Path(f"/proc/self/fd/{lock}").stat())
        assert vm.service.requests() == []
    finally:
        os.close(lock)
    vm.extension.finish()
    assert_each_reported_as_killed(vm, [job])


def until_waiting_for(pid: int, lock: os.stat_result) -> None:
    """Waits until a process has opened the file of a lock that it cannot get."""
    until = time.monotonic() + 10.0
    while True:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), lock):
                    return
        assert time.monotonic() < until, "the process does not wait for the lock"
        time.sleep(0.01)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("verb", ["disable", "uninstall"])
def test_disable_ends_a_mending_process_whose_status_blobs_never_answer(vm: Vm, verb: str) -> None:
    # Each one costs 10 s, so together they take longer than disable waits.
    jobs = killed_together(vm, 5)
    for job in jobs:
        vm.service.script(job.status_blob, NEVER)
    began = time.monotonic()
    assert vm.extension.run(verb).status == 0
    took_seconds = time.monotonic() - began
    assert vm.extension.sandbox.process_ids() == []
    assert MENDING_LIMIT_SECONDS <= took_seconds < MENDING_LIMIT_SECONDS + 10.0
    assert own_groups() == set()
    # The next command completes what is left, without the agent's help.
    for job in jobs:
        vm.service.script(job.status_blob, USUAL)
    jobs[-1].enable()
    vm.extension.finish()
    assert_each_reported_as_killed(vm, jobs)
    for job in jobs:
        assert 'protectedSettings"' not in vm.extension.settings_text(job.number)


def own_groups() -> set[Path]:
    """Returns the control groups that are named after a process that is gone."""
    roots = [mount.mount_point for mount in read_mounts() if mount.filesystem_type in ("cgroup", "cgroup2")]
    groups = {group for root in roots for group in root.glob("vmsnapshot-w*-*")}
    return {group for group in groups if not Path("/proc", group.name.rpartition("-")[2]).exists()}


def test_record_of_a_job_is_removed_when_all_is_reported(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyHost")
    job.run()
    folder = vm.extension.sandbox.path(vm.extension.base_directory / "workers")
    assert not (folder / f"{job.number}.json").exists()


def until_final(vm: Vm, job: Job) -> None:
    """Waits until the final report is in the status blob."""
    # The first upload is the transitioning report, the second the final one.
    vm.service.wait_for("PUT", 4)
    assert final(job.blob_report()) == ("success", "1", 1)
