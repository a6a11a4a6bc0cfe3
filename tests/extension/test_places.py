"""Something else than a file in the place of a file: commands end, jobs get a status, links are not followed.

Only root can write to these places. What stands there is an accident, or was there before the extension.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extension.conftest import Vm, final, message
from tests.support.extension import LOG_FOLDER
from tests.support.isolation import AZURE_CONFIGURATION
from tests.support.protected_settings import object_str

NAMED_PIPE = None
ZERO = Path("/dev/zero")
PLACES = (
    LOG_FOLDER / "extension.log",
    LOG_FOLDER / "shell.log",
    Path("/etc/azure/workload.conf"),
    Path("/etc/azure/VMSnapshotScriptPluginConfig.json"),
    Path("/etc/waagent.conf"),
    Path("/etc/os-release"),
    Path("HandlerEnvironment.json"),
    Path("mrseq"),
    Path("task_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C"),
)


@contextlib.contextmanager
def instead_of(path: Path, target: Path | None) -> Iterator[None]:
    """Puts a link to ``target``, or a named pipe, in the place of a file. Puts the file back afterwards."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if target is NAMED_PIPE:
        os.mkfifo(path, 0o600)
    else:
        path.symlink_to(target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


impostors = pytest.mark.parametrize("target", [NAMED_PIPE, ZERO], ids=["named pipe", "link to a device"])


@impostors
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name[:20])
def test_backup_succeeds_whatever_is_in_the_place_of_another_file(
    vm: Vm, place: Path, target: Path | None
) -> None:
    path = vm.extension.sandbox.path(vm.extension.base_directory / place)
    with instead_of(path, target):
        report = vm.job(vm.new_number(), disks=1, mode="onlyGuest").run()
    assert final(report) == ("success", "1", 1)


@impostors
def test_job_gets_a_status_if_its_configuration_is_not_a_file(vm: Vm, target: Path | None) -> None:
    # Settings that cannot be used. Without the configuration, a good job would freeze the root.
    job = vm.job(vm.new_number(), disks=1, objectStr="abcde")
    with instead_of(vm.extension.sandbox.path(AZURE_CONFIGURATION), target):
        report = job.run()
    assert report["status"] == "error"
    assert "vmbackup.conf`, all options have their defaults: it is not a regular file" in vm.extension.log()


@impostors
def test_job_gets_an_error_status_if_its_settings_are_not_a_file(vm: Vm, target: Path | None) -> None:
    number = vm.new_number()
    folder = vm.extension.sandbox.path(vm.extension.base_directory / "config")
    with instead_of(folder / f"{number}.settings", target):
        assert vm.extension.run("enable", number).status == 0
        vm.extension.finish()
    report = vm.extension.report(number)
    assert report["status"] == "error"
    assert "the settings file cannot be read: it is not a regular file" in message(report)


def test_settings_that_are_too_long_cost_no_memory_and_get_an_error_status(vm: Vm) -> None:
    number = vm.new_number()
    path = vm.extension.sandbox.path(vm.extension.base_directory / f"config/{number}.settings")
    with path.open("w") as file:
        file.write('{"runtimeSettings": [{"handlerSettings": {"publicSettings": {"taskId": "')
        for _ in range(100):
            file.write("x" * (1 << 20))
        file.write('"}}}]}')
    assert vm.extension.run("enable", number).status == 0
    vm.extension.finish()
    path.unlink()
    assert "it is longer than" in message(vm.extension.report(number))
    # Of every process that ended in this test run so far.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 600 * 1024


def test_status_replaces_a_link_and_leaves_its_target_alone(vm: Vm, tmp_path: Path) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    target = tmp_path / "target"
    target.write_text("target")
    vm.extension.status_file(job.number).symlink_to(target)
    assert final(job.run()) == ("success", "1", 1)
    assert not vm.extension.status_file(job.number).is_symlink()
    assert vm.extension.report(job.number)["status"] == "success"
    assert vm.extension.sandbox.path(target).read_text() == "target"


def test_log_that_is_a_link_is_not_followed_and_the_log_blob_says_so(vm: Vm, tmp_path: Path) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    target = tmp_path / "target"
    target.write_text("target")
    with contextlib.ExitStack() as stack:
        for name in ("extension.log", "shell.log"):
            stack.enter_context(instead_of(vm.extension.sandbox.path(LOG_FOLDER / name), target))
        assert final(job.run()) == ("success", "1", 1)
    assert vm.extension.sandbox.path(target).read_text() == "target"
    blob = vm.service.content(job.logs_blob).decode()
    assert f"could not write to `{LOG_FOLDER}/extension.log`: it is not a regular file" in blob


def test_configuration_may_be_a_link_to_a_file(vm: Vm) -> None:
    vm.extension.configure(timeout=0.001)
    path = vm.extension.sandbox.path(AZURE_CONFIGURATION)
    elsewhere = path.with_name("managed.conf")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)
    try:
        report = vm.job(vm.new_number(), disks=1, mode="onlyGuest").run()
    finally:
        path.unlink()
        elsewhere.unlink()
    # The mounts to skip were read: the root was not frozen.
    assert final(report) == ("success", "1", 1)
    assert "`timeout` in vmbackup.conf is `0.001`" in vm.extension.log()


def test_name_and_password_in_a_blob_uri_reach_no_file(vm: Vm) -> None:
    job = vm.job(vm.new_number(), disks=1, mode="onlyGuest")
    uri = vm.service.uri(job.disks[0]).replace("://", "://operator:hunter2@")
    job.protected["objectStr"] = object_str({"blobSASUri": [uri]})
    job.run()
    assert "...@" in vm.extension.status_file(job.number).read_text()
    for path, content in vm.extension.sandbox.written().items():
        assert b"hunter2" not in content, path
