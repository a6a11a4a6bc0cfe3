"""A run, and a command that reads its ledger, in different namespaces of process ids or of clocks.

A process id means another process there, and CLOCK_MONOTONIC another instant.
"""

from __future__ import annotations

import pytest

from tests.engine.conftest import Machine
from tests.engine.runs import outcomes
from tests.support.command import SnapshotRun, read_status, run_command
from tests.support.fault_server import Creates

PID_NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
# There, every deadline of this machine has passed, and every process began at another time.
TIME_NAMESPACE = ("unshare", "--time", "--fork", "--kill-child", "--monotonic=100000", "--boottime=100000")
ELSEWHERE = pytest.mark.parametrize("elsewhere", [PID_NAMESPACE, TIME_NAMESPACE], ids=["pid", "time"])


@ELSEWHERE
def test_thaw_in_another_namespace_leaves_a_live_run_alone(
    machine: Machine, elsewhere: tuple[str, ...]
) -> None:
    machine.server.script("disk", Creates(after_ms=2500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")]) as run:
        run.wait_until_open(machine.server)
        (told,) = run_command("status", "--json", before=elsewhere).document["runs"]
        assert (told["state"], told["alive"], told["watchdog_alive"]) == ("at-work", True, True)
        thaw = run_command("thaw", "--json", before=elsewhere)
        assert (thaw.status, thaw.document["thawed"], len(thaw.document["left_alone"])) == (1, [], 1)
        finished = run.finish()
    assert (finished.status, outcomes(finished.document)) == (0, {"thawed"})


@ELSEWHERE
def test_thaw_leaves_a_live_run_in_another_namespace_alone(
    machine: Machine, elsewhere: tuple[str, ...]
) -> None:
    machine.server.script("disk", Creates(after_ms=2500))
    with SnapshotRun(machine.mount_points, [machine.server.uri("disk")], before=elsewhere) as run:
        run.wait_until_open(machine.server)
        (told,) = read_status()["runs"]
        assert (told["state"], told["alive"], told["watchdog_alive"]) == ("at-work", True, True)
        thaw = run_command("thaw", "--json")
        assert (thaw.status, thaw.document["thawed"], len(thaw.document["left_alone"])) == (1, [], 1)
        finished = run.finish()
    assert (finished.status, outcomes(finished.document)) == (0, {"thawed"})
