"""Filesystems that are mounted and unmounted while a job waits for the safe-freeze lock."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extension.conftest import HOST, RESCUE_AFTER_SECONDS, Vm, final
from tests.support import processes
from tests.support.extension import Extension
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems, scratch_directory
from tests.support.host_service import HostService
from tests.support.isolation import Sandbox
from tests.support.rescue import RescueThaw

LOCK_DIRECTORY = "/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock"
# Holds the lock until its standard input ends.
HOLD = f"""
import fcntl, os, sys
os.makedirs({LOCK_DIRECTORY!r}, exist_ok=True)
with open({LOCK_DIRECTORY + "/SafeFreezeLockFile"!r}, "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def three_disks(unpacked_extension: Path) -> Iterator[Vm]:
    """Makes a VM with three filesystems, of which the test may unmount the second and the third."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        filesystems = stack.enter_context(ScratchFilesystems(directory))
        disks = [filesystems.make_on_loop(name) for name in ("stays", "goes", "comes")]
        service = stack.enter_context(HostService())
        sandbox = stack.enter_context(Sandbox(disks))
        sandbox.forward(80, host=HOST, outside_port=service.port)
        sandbox.forward(service.port)
        rescue = stack.enter_context(RescueThaw([disks[0].mount_point], RESCUE_AFTER_SECONDS))
        vm = Vm(Extension(sandbox, unpacked_extension), service, disks)
        vm.extension.configure()
        yield vm
        vm.extension.finish()
        assert not rescue.cancel()


def unmount(sandbox: Sandbox, filesystem: ScratchFilesystem) -> None:
    """Unmounts a filesystem in the sandbox and outside."""
    assert sandbox.run("umount", filesystem.mount_point).status == 0
    processes.run_bounded(["umount", filesystem.mount_point])


def wait_for(vm: Vm, text: str) -> None:
    """Waits until the extension's log contains ``text``."""
    until = time.monotonic() + 20.0
    while text not in vm.extension.log():
        assert time.monotonic() < until, vm.extension.log()
        time.sleep(0.02)


def test_job_freezes_what_was_mounted_while_it_waited_and_goes_on_without_what_was_unmounted(
    three_disks: Vm,
) -> None:
    vm = three_disks
    sandbox = vm.extension.sandbox
    stays, goes, comes = vm.filesystems
    unmount(sandbox, comes)
    holder = sandbox.popen(
        ["python3", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.enable()
    wait_for(vm, "to freeze: ")
    log = vm.extension.log()
    assert f"`{goes.mount_point}`" in log and f"`{comes.mount_point}`" not in log
    unmount(sandbox, goes)
    assert sandbox.run("mount", comes.device, comes.mount_point).status == 0
    holder.stdin.close()
    vm.extension.finish()
    assert final(job.blob_report()) == ("success", "1", 1)
    log = vm.extension.log()
    assert f"`{goes.mount_point}`: unmounted" in log
    for filesystem in (stays, comes):
        assert f"freeze returned {filesystem.mount_point}\n" in log
