"""A job on a VM with a filesystem that nothing can write to any more."""

from __future__ import annotations

from tests.extension.conftest import Vm, final
from tests.support.filesystems import shut_down


def test_filesystem_that_was_shut_down_does_not_fail_the_job(vm: Vm) -> None:
    healthy, sick = vm.filesystems
    shut_down(sick)
    report = vm.job(vm.new_number(), mode="onlyGuest").run()
    assert final(report) == ("success", "1", 1)
    assert f"`{sick.mount_point}`: not-writable" in vm.extension.log()
    assert f"`{healthy.mount_point}`: " not in vm.extension.log()
