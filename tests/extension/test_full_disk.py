"""A disk without free inodes below ``/etc/azure``, logs and status: the backup is taken all the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extension.conftest import Vm, cause, final
from tests.support.extension import LOG_FOLDER

ETC = Path("/etc/azure")


@contextlib.contextmanager
def without_free_inodes(vm: Vm) -> Iterator[None]:
    """Moves ``/etc/azure``, the logs and the status to the ext4 of the test, and uses up its inodes."""
    sandbox, disk = vm.extension.sandbox, vm.filesystems[0].mount_point
    places = [ETC, LOG_FOLDER, vm.extension.base_directory / "status"]
    fillers = disk / "fillers"
    fillers.mkdir()
    mounted = []
    try:
        for place in places:
            copy = disk / place.name
            copy.mkdir()
            if place == ETC:
                configuration = sandbox.path(ETC / "vmbackup.conf").read_text()
                (copy / "vmbackup.conf").write_text(configuration)
            assert sandbox.run("mount", "--bind", copy, place).status == 0
            mounted.append(place)
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                os.close(os.open(fillers / str(number), os.O_CREAT | os.O_WRONLY))
        assert os.statvfs(disk).f_ffree == 0
        yield
    finally:
        for place in mounted:
            assert sandbox.run("umount", place).status == 0
        for directory in (fillers, *(disk / place.name for place in places)):
            sandbox.run("rm", "--recursive", directory)


@pytest.mark.timeout(120)
def test_job_without_free_inodes_takes_its_snapshots_and_says_what_it_could_not_write(vm: Vm) -> None:
    job = vm.job(vm.new_number(), mode="onlyGuest")
    with without_free_inodes(vm):
        # The entry script complains about its log on standard error, and goes on.
        assert vm.extension.enable(job.number, job.settings(), job.protected).status == 0
        vm.extension.finish()
        assert not vm.extension.sandbox.path(ETC / "MicrosoftRecoverySvcsSafeFreezeLock").exists()
    report = job.blob_report()
    assert final(report) == ("success", "1", 1)
    assert len(vm.service.requests("PUT snapshot")) == 2
    assert "FreezeTime" in str(report["telemetryData"])
    log = vm.service.content(job.logs_blob).decode()
    assert "SafeFreezeLockFile`: no space left on device; freezing without it" in log
    assert "could not write the status file: OSError (no space left on device)" in log
    assert "freeze called" in log


def test_full_run_directory_freezes_nothing_and_says_so(vm: Vm) -> None:
    sandbox = vm.extension.sandbox
    job = vm.job(vm.new_number(), mode="onlyGuest")
    # Without its ledger neither the watchdog nor `thaw` would know what is frozen.
    mounting = sandbox.run("mount", "-t", "tmpfs", "-o", "nr_inodes=1", "full", "/run")
    assert mounting.status == 0
    try:
        report = job.run()
    finally:
        assert sandbox.run("umount", "/run").status == 0
    assert final(report) == ("error", "121", 121)
    assert vm.service.requests("PUT snapshot") == []
    assert "`/run/vmsnapshot`: no space left on device" in cause(report)
