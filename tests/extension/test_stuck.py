"""A freeze that the kernel does not finish: the blob is written before any file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extension.conftest import HOST, Vm, final
from tests.support.extension import Extension
from tests.support.filesystems import ScratchFilesystems, scratch_directory
from tests.support.freezing import frozen, is_frozen
from tests.support.host_service import HostService, Usual
from tests.support.isolation import Sandbox
from tests.support.rescue import RescueThaw


@pytest.fixture
def stacked_vm(unpacked_extension: Path) -> Iterator[Vm]:
    """Makes a VM with one filesystem on a file of the other."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        filesystems = stack.enter_context(ScratchFilesystems(directory))
        lower = filesystems.make_on_loop("lower", "ext4", size_mib=512)
        upper = filesystems.make_on_loop("upper", "ext4", inside=lower)
        service = stack.enter_context(HostService())
        rescue = stack.enter_context(RescueThaw([upper.mount_point, lower.mount_point], 40.0))
        sandbox = stack.enter_context(Sandbox([lower, upper]))
        sandbox.forward(80, host=HOST, outside_port=service.port)
        sandbox.forward(service.port)
        vm = Vm(Extension(sandbox, unpacked_extension), service, [lower, upper])
        yield vm
        vm.extension.finish()
        assert rescue.cancel() == []


def test_status_blob_is_written_first_when_something_may_still_be_frozen(stacked_vm: Vm) -> None:
    vm = stacked_vm
    lower, upper = (filesystem.mount_point for filesystem in vm.filesystems)
    vm.extension.configure(timeout=1)
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.status_blob, Usual(), Usual(after_ms=700.0), operation="PUT")
    # FIFREEZE of the upper filesystem does not return while another program keeps the lower one frozen.
    with frozen(lower):
        job.enable()
        # Two uploads are transitioning, of status and log. The third is the final status.
        vm.service.wait_for("PUT", 3)
        assert vm.extension.report(job.number)["code"] == "4"
        vm.extension.wait_for_code(job.number, "122")
        assert final(job.blob_report()) == ("error", "122", 122)
        assert vm.service.requests("PUT snapshot") == []
    vm.extension.finish()
    assert not is_frozen(upper)
    assert not is_frozen(lower)
    assert "not everything is thawed" in vm.extension.log()
