"""The ledger of a run is truncated inside its window: an access to its mapping then raises SIGBUS."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.engine.conftest import Machine
from tests.support import freezing
from tests.support.command import read_status, run_command, run_of, take_snapshot, wait_until_gone
from tests.support.fault_server import Creates


@pytest.mark.parametrize("size_bytes", [0, 4096, 5000])
def test_watchdog_thaws_at_the_deadline_when_the_ledger_was_truncated(
    machine: Machine, size_bytes: int
) -> None:
    with machine.open_window(thaw_timeout=2.0) as run:
        run_id = run.run_id()
        ledger = Path(f"/run/vmsnapshot/{run_id}.ledger")
        watchdog_pid = run_of(read_status(), run_id)["watchdog_pid"]
        os.truncate(ledger, size_bytes)
        truncated_ns = time.monotonic_ns()
        # The run does not look at its ledger before it thaws. Then the kernel ends it.
        finished = run.finish()
    assert finished.status == -signal.SIGBUS
    machine.assert_thawed_within(2500.0, since_ns=truncated_ns)
    wait_until_gone(watchdog_pid)
    assert not any(freezing.is_frozen(mount_point) for mount_point in machine.mount_points)
    # Such a file does not hinder the next run.
    machine.server.script("disk", Creates())
    assert take_snapshot(machine.mount_points, [machine.server.uri("disk")]).status == 0
    assert ledger.exists() == (size_bytes == 5000)
    ledger.unlink(missing_ok=True)


def test_watchdog_thaws_at_once_when_the_run_is_killed_after_its_ledger_was_truncated(
    machine: Machine,
) -> None:
    with machine.open_window() as run:
        run_id = run.run_id()
        watchdog_pid = run_of(read_status(), run_id)["watchdog_pid"]
        ledger = Path(f"/run/vmsnapshot/{run_id}.ledger")
        os.truncate(ledger, 0)
        told = run_command("status", "--json")
        assert told.status == 1
        assert [item["path"] for item in told.document["unreadable"]] == [str(ledger)]
        assert run_command("thaw", "--json").status == 1
        killed_ns = run.send(signal.SIGKILL)
        run.finish()
    machine.assert_thawed_within(500.0, since_ns=killed_ns)
    wait_until_gone(watchdog_pid)
    assert run_command("status").status == 0
    assert run_command("thaw").status == 0
    assert not ledger.exists()
