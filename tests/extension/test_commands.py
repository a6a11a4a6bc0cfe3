"""The agent's commands: what runs once, what is repeated, and what happens to a running worker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.extension.conftest import OTHER_VM, Job, Vm, final, message, worker_of
from tests.support.freezing import is_frozen
from tests.support.host_service import NEVER_MS, USUAL, Answer, Usual
from tests.support.protected_settings import settings_file_text

WORKLOAD = Path("/etc/azure/workload.conf")
LOCK_DIRECTORY = Path("/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock")


def test_same_sequence_number_takes_no_second_snapshot(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.run()
    before = vm.extension.status_file(job.number).read_text()
    vm.service.forget_requests()
    job.enable()
    vm.extension.finish()
    assert vm.service.requests() == []
    assert vm.extension.status_file(job.number).read_text() == before
    assert 'protectedSettings"' not in vm.extension.settings_text(job.number)


def test_same_task_under_another_number_is_reported_as_already_processed(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.run()
    vm.service.forget_requests()
    again = vm.job(vm.new_number(), mode="onlyGuest", taskId=job.public["taskId"])
    again.enable()
    vm.extension.finish()
    assert vm.service.requests() == []
    assert final(vm.extension.report(again.number)) == ("success", "3", 3)
    assert 'protectedSettings"' not in vm.extension.settings_text(again.number)


def test_files_of_the_previous_number_are_renamed(vm: Vm) -> None:
    first, second = (vm.job(vm.new_number(), disks=1, mode="onlyGuest") for _ in range(2))
    first.run()
    second.run()
    folder = vm.extension.sandbox.path(vm.extension.base_directory)
    assert [path.name for path in (folder / "status").glob("*.status")] == [f"{second.number}.status"]
    assert [path.name for path in (folder / "config").glob("*.settings")] == [f"{second.number}.settings"]
    assert (folder / f"status/{first.number}_status").exists()
    assert (folder / f"config/{first.number}_settings").exists()


def test_lower_sequence_number_is_a_new_job(vm: Vm) -> None:
    number = vm.new_number() + 1_000_000
    vm.job(number, disks=1, mode="onlyGuest").run()
    assert final(vm.job(number - 1, disks=1, mode="onlyGuest").run()) == ("success", "1", 1)


def test_restored_vm_repeats_the_job_of_the_vm_that_was_backed_up(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.run()
    vm.extension.be(OTHER_VM)
    vm.service.create_block_blob(job.status_blob)
    report = job.run()
    assert final(report) == ("success", "1", 1)
    assert report["uniqueMachineId"] == OTHER_VM[1:-1]
    assert len(vm.service.snapshots(job.disks[0])) == 2


def test_enable_does_not_wait_for_its_worker(vm: Vm) -> None:
    vm.service.script("presnapshot", Usual(after_ms=1000.0))
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.enable()
    assert final(vm.extension.report(job.number)) == ("success", "4", 1)
    assert message(vm.extension.report(job.number)) == "Transitioning state in extension"
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)


def test_worker_has_its_own_session_and_control_group(vm: Vm) -> None:
    vm.service.script("presnapshot", Usual(after_ms=500.0))
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.enable()
    vm.service.wait_for("presnapshot")
    worker = worker_of(vm)
    assert os.getsid(worker) == worker
    assert os.getpgid(worker) == worker
    assert Path(f"/proc/{worker}/cwd").readlink() == Path("/")
    groups = Path(f"/proc/{worker}/cgroup").read_text().splitlines()
    assert any(line.startswith("0::/") and "/vmsnapshot-worker-" in line for line in groups), groups
    assert all(Path(f"/proc/{worker}/fd/{number}").readlink() == Path("/dev/null") for number in range(3))


@pytest.mark.parametrize("verb", ["disable", "uninstall"])
def test_disable_waits_until_a_worker_in_its_window_has_finished(vm: Vm, verb: str) -> None:
    vm.service.script("dosnapshot", Usual(after_ms=700.0))
    job = vm.job(vm.new_number(), mode="onlyHost")
    job.enable()
    vm.service.wait_for("dosnapshot")
    assert vm.extension.run(verb).status == 0
    assert vm.extension.sandbox.process_ids() == []
    assert final(job.blob_report()) == ("success", "1", 1)
    assert not any(is_frozen(filesystem.mount_point) for filesystem in vm.filesystems)


def test_disable_ends_a_worker_before_its_window_without_a_snapshot(vm: Vm) -> None:
    vm.service.script("presnapshot", Answer(after_ms=NEVER_MS))
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.enable()
    vm.service.wait_for("presnapshot")
    assert vm.extension.run("disable").status == 0
    assert vm.extension.sandbox.process_ids() == []
    assert final(job.blob_report()) == ("error", "2", 2)
    assert "ended by disable" in message(job.blob_report())
    assert vm.service.requests("PUT snapshot") == []


@pytest.mark.parametrize("verb", ["disable", "uninstall", "update", "install"])
def test_command_can_be_repeated_and_needs_no_settings(vm: Vm, verb: str) -> None:
    for _ in range(2):
        finished = vm.extension.run(verb, 987654)
        assert (finished.status, finished.output, finished.errors) == (0, "", "")


def test_install_leaves_a_workload_conf_that_names_a_workload_alone(vm: Vm) -> None:
    workload = vm.extension.sandbox.path(WORKLOAD)
    workload.write_text("[workload]\nworkload_name = mysql\n")
    vm.extension.run("install")
    assert workload.read_text() == "[workload]\nworkload_name = mysql\n"
    workload.write_text("[workload]\nworkload_name =\n")
    vm.extension.run("install")
    assert "linux_user" in workload.read_text()


def test_update_and_downgrade_carry_the_state_over(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.run()
    base = vm.extension.base_directory
    newer = base.with_name(base.name.rpartition("-")[0] + "-2.0")
    inside = vm.extension.sandbox.path(newer)
    inside.mkdir()
    # On a downgrade the agent runs the code of the old version, and both variables name the new one.
    vm.extension.run("update", job.number, VERSION="2.0", AZURE_GUEST_AGENT_UPDATING_FROM_VERSION="2.0")
    names = {path.name.partition("_")[0] for path in inside.iterdir()}
    assert names == {"mrseq", "task", "machine"}
    assert (inside / "mrseq").read_text() == str(job.number)


def test_job_fails_without_the_lock(vm: Vm) -> None:
    directory = vm.extension.sandbox.path(LOCK_DIRECTORY)
    vm.extension.run("install")
    for path in directory.glob("*"):
        path.unlink()
    if directory.exists():
        directory.rmdir()
    directory.write_text("")
    try:
        job = vm.job(vm.new_number(), mode="onlyGuest")
        assert final(job.run()) == ("error", "121", 121)
        assert vm.service.requests("PUT snapshot") == []
    finally:
        directory.unlink()


def test_newer_job_gets_its_status_while_an_older_one_still_runs(vm: Vm) -> None:
    vm.service.script("presnapshot", Usual(after_ms=1500.0), USUAL)
    older, newer = (vm.job(vm.new_number(), disks=1, mode="onlyGuest") for _ in range(2))
    older.enable()
    vm.service.wait_for("presnapshot")
    newer.enable()
    vm.extension.finish()
    assert final(older.blob_report()) == ("success", "1", 1)
    assert final(vm.extension.report(newer.number)) == ("success", "1", 1)
    # The files of the older job are not renamed before it has finished.
    assert final(vm.extension.report(older.number)) == ("success", "1", 1)
    vm.job(vm.new_number(), disks=1, mode="onlyGuest").run()
    assert not vm.extension.status_file(older.number).exists()


def test_enable_writes_a_status_when_its_environment_is_unreadable(vm: Vm) -> None:
    file = vm.extension.sandbox.path(vm.extension.base_directory / "HandlerEnvironment.json")
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    try:
        job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
        vm.extension.write_settings(job.number, settings_file_text(job.settings(), job.protected))
        assert vm.extension.run("enable", job.number).status == 0
        vm.extension.finish()
        assert final(vm.extension.report(job.number))[1] != "4"
    finally:
        file.write_text(text)


def test_two_enables_at_once_take_one_snapshot(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    vm.extension.write_settings(job.number, settings_file_text(job.settings(), job.protected))
    environment = {
        "ConfigSequenceNumber": str(job.number),
        "AZURE_GUEST_AGENT_EXTENSION_PATH": str(vm.extension.base_directory),
    }
    command: list[str | Path] = [vm.extension.base_directory / "bin/handler", "enable"]
    started = [
        vm.extension.sandbox.popen(
            command, environment=environment, directory=vm.extension.base_directory, stdin=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    assert [process.wait(timeout=30) for process in started] == [0, 0]
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)
    assert len(vm.service.snapshots(job.disks[0])) == 1


def test_settings_that_the_agent_rewrites_while_the_worker_runs_are_scrubbed_too(vm: Vm) -> None:
    vm.service.script("dosnapshot", Usual(after_ms=700.0))
    job = vm.job(vm.new_number(), mode="onlyHost")
    job.enable()
    vm.service.wait_for("dosnapshot")
    job.enable()
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)
    assert 'protectedSettings"' not in vm.extension.settings_text(job.number)


def test_status_is_in_the_blob_when_its_file_cannot_be_written(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    # A directory in its place, which no file can replace.
    vm.extension.status_file(job.number).mkdir()
    try:
        assert final(job.run()) == ("success", "1", 1)
    finally:
        vm.extension.status_file(job.number).rmdir()
    assert "could not write the status file" in vm.extension.log()


def test_enable_restarts_the_polling_service_and_disable_ends_it(vm: Vm) -> None:
    # There is no systemd here, so a file marks the service as wanted.
    (vm.extension.sandbox.path(vm.extension.base_directory) / "directsnapshot.pid").touch()
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    for _ in range(2):
        job.enable()
    vm.service.wait_for("checkforsnapshot")
    vm.extension.wait_for_code(job.number, "1")
    assert vm.extension.run("uninstall").status == 0
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)


def test_job_can_request_the_polling_service(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    job.object["dynamicConfigsFromCRP"] = [{"Key": "EnableVMSnapshotExtensionPolling", "Value": "true"}]
    job.enable()
    vm.service.wait_for("checkforsnapshot")
    assert vm.extension.run("uninstall").status == 0
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)


def test_failed_housekeeping_does_not_prevent_a_job(vm: Vm) -> None:
    folder = vm.extension.sandbox.path(vm.extension.base_directory / "config")
    (folder / "99999.settings").mkdir()
    (folder / "99999_settings").touch()
    try:
        job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
        assert final(job.run()) == ("success", "1", 1)
        job.enable()
        vm.extension.finish()
        assert final(vm.extension.report(job.number)) == ("success", "1", 1)
    finally:
        (folder / "99999.settings").rmdir()
        (folder / "99999_settings").unlink()


def test_status_and_thaw_of_the_handler_work_without_the_command_line(vm: Vm) -> None:
    for verb in ("status", "thaw"):
        finished = vm.extension.run(verb)
        assert finished.status == 0, finished.errors
        assert "nothing" in finished.output


def test_report_has_the_facts_about_the_job(vm: Vm) -> None:
    job: Job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    report = job.run()
    assert report["name"] == "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"
    facts = {pair["Key"]: pair["Value"] for pair in report["telemetryData"]}
    assert facts["extensionVersion"] == "1.0.0.1"
    assert facts["snapshotCreator"] == "guestExtension"
    assert facts["extErrorCode"] == "success"
    assert report["storageDetails"]["partitionCount"] == 2
    assert json.loads(report["formattedMessage"]["message"])["jobMessage"] == ""
