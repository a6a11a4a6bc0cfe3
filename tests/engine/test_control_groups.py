"""A process gets a control group of its own, so that it is not killed together with that of its starter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartFaultServer, require
from tests.support.command import run_command
from tests.support.filesystems import ScratchFilesystem
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


def hierarchies() -> list[Path]:
    """The hierarchies by which a service manager may end processes."""
    mounts = read_mounts()
    found = [mount.mount_point for mount in mounts if mount.filesystem_type == "cgroup2"]
    by_name = [mount.mount_point for mount in mounts if mount.mount_point.name == "systemd"]
    require(bool(found) and bool(by_name), "needs a hybrid of cgroup v1 and v2")
    return found + by_name


def closed(hierarchy: Path) -> tuple[str, ...]:
    """Words that go before a command: it runs where this hierarchy is read-only."""
    return ("unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro "$0" && exec "$@"', str(hierarchy))


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("number", [0, 1])
def test_a_move_that_fails_in_one_hierarchy_is_reported_and_leaves_no_group(number: int) -> None:
    # The child ends by itself, and is the process that a worker is: it leaves its groups at its end.
    leave = "import sys; from vmsnapshot import _native; sys.stdin.read(); _native.leave_control_group()"
    program = f"""if True:
        import subprocess, sys
        from vmsnapshot import _native
        with subprocess.Popen([sys.executable, "-c", {leave!r}], stdin=subprocess.PIPE) as child:
            print(_native.give_control_group(child.pid, "{ROLE}"))
            child.communicate(timeout=20)
    """
    before = closed(hierarchies()[number])
    ran = subprocess.run(
        [*before, sys.executable, "-c", program], capture_output=True, text=True, timeout=40, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "False\n", "")
    assert groups() == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_watchdog_whose_move_fails_in_one_hierarchy_goes_back(
    disk: ScratchFilesystem, fault_server: StartFaultServer, number: int
) -> None:
    def left() -> set[Path]:
        return {path for root in hierarchies() for path in root.glob("vmsnapshot-watchdog-*")}

    before = left()
    finished = run_command(
        "snapshot", "--json", "--no-proxy", "--blobs-from=-", f"--mount={disk.mount_point}",
        standard_input=fault_server().uri("disk"), before=closed(hierarchies()[number]),
    )  # fmt: skip
    assert finished.document["watchdog"]["own_control_group"] is False
    assert left() - before == set()


@pytest.mark.parametrize("role", ["", "a/b", "..", "a\0b", "\u00e4", "a-b", "A"])
def test_an_invalid_role_of_a_control_group_is_refused(role: str) -> None:
    with pytest.raises(ValueError, match="the role of a control group"):
        _native.give_control_group(1, role)
