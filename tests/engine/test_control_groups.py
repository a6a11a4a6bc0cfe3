"""A process gets a control group of its own, so that it is not killed together with that of its starter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.mounts import read_mounts
from vmsnapshot import _native

ROLE = "trial"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leaves its own control group when its standard input is closed."""
    program = "import sys; from vmsnapshot import _native; sys.stdin.read(); _native.leave_control_group()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def groups() -> list[Path]:
    roots = [mount.mount_point for mount in read_mounts() if mount.filesystem_type in ("cgroup", "cgroup2")]
    return [path for root in roots for path in root.glob(f"vmsnapshot-{ROLE}-*")]


def give(child: subprocess.Popen[bytes]) -> None:
    is_given = _native.give_control_group(child.pid, ROLE)
    require(is_given, "needs cgroup v2, and root, to make a control group")
    assert {path.name for path in groups()} == {f"vmsnapshot-{ROLE}-{child.pid}"}
    lines = Path(f"/proc/{child.pid}/cgroup").read_text()
    assert lines.count(f":/vmsnapshot-{ROLE}-{child.pid}\n") == len(groups())


@pytest.mark.usefixtures("root")
def test_a_child_gets_a_control_group_and_removes_it_at_its_end(child: subprocess.Popen[bytes]) -> None:
    give(child)
    # It is there already.
    assert _native.give_control_group(child.pid, ROLE)
    # The group of a living process stays.
    _native.leave_control_group()
    assert groups() != []
    child.communicate(timeout=20)
    assert child.returncode == 0
    assert groups() == []


@pytest.mark.usefixtures("root")
def test_the_control_group_of_a_killed_process_is_removed(child: subprocess.Popen[bytes]) -> None:
    give(child)
    child.kill()
    child.wait(timeout=20)
    assert groups() != []
    _native.leave_control_group()
    assert groups() == []


@pytest.mark.parametrize("role", ["", "a/b", "..", "a\0b", "\u00e4", "a-b", "A"])
def test_an_invalid_role_of_a_control_group_is_refused(role: str) -> None:
    with pytest.raises(ValueError, match="the role of a control group"):
        _native.give_control_group(1, role)
