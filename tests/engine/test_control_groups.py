"""A process leaves its control group, so that it is not killed together with that group."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import require
from tests.support.mounts import read_mounts
from vmsnapshot import _native


@pytest.mark.usefixtures("root")
def test_a_process_leaves_its_control_group_and_removes_those_of_the_dead() -> None:
    program = """
import os
from vmsnapshot import _native
before = open("/proc/self/cgroup").read()
if _native.leave_control_group("vmsnapshot-test-leave"):
    assert f"/vmsnapshot-test-leave-{os.getpid()}\\n" in open("/proc/self/cgroup").read()
    # It is there already.
    assert _native.leave_control_group("vmsnapshot-test-leave")
    print("left")
else:
    assert open("/proc/self/cgroup").read() == before
"""
    hierarchies = [
        mount.mount_point for mount in read_mounts() if mount.filesystem_type in ("cgroup", "cgroup2")
    ]
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, timeout=20, check=True, cwd="/"
        )
    require(process.stdout == b"left\n", "needs cgroup v2, and root, to make a control group")
    left = [path for hierarchy in hierarchies for path in hierarchy.glob("vmsnapshot-test-leave-*")]
    # The second process removed the group of the first. Its own group stays.
    assert 1 <= len(left) <= 2
    assert len({path.name for path in left}) == 1
    for path in left:
        path.rmdir()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\0b", "\u00e4"])
def test_an_invalid_name_for_a_control_group_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a control group"):
        _native.leave_control_group(name)
