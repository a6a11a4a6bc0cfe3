"""A caller that gives up before the freeze: nothing is asked, nothing is frozen, and it does not wait."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.engine.conftest import Machine
from tests.engine.runs import start_program
from tests.engine.test_long_jobs import devices_locked
from tests.support import freezing, processes
from tests.support.command import SnapshotRun, read_status
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.tls_servers import bare_server

END_LIMIT_SECONDS = 1.0
# What the run is interrupted in would take this long.
LONG = "60"


@pytest.mark.parametrize("sync_timeout", [None, 5.0], ids=["without-sync", "with-sync"])
def test_a_keyboard_interrupt_at_the_last_moment_before_the_freeze_freezes_nothing(
    machine: Machine, sync_timeout: float | None
) -> None:
    program = f"""
        phases = []
        def progress(phase):
            phases.append(phase)
            if phase == "freeze":
                raise KeyboardInterrupt
        session = prepare(
            thaw_timeout=10.0, call_timeout=10.0, sync_timeout={sync_timeout}, progress=progress
        )
        try:
            session.run()
        except KeyboardInterrupt:
            print("interrupted", "sync" in phases, phases[-1])
        print(vmsnapshot.status().runs)
    """
    process = start_program(machine, program)
    output, errors = process.communicate(timeout=20)
    expected = ["interrupted", str(sync_timeout is not None), "freeze", "[]"]
    assert output.decode().split() == expected, errors.decode()
    assert machine.server.requests() == []
    # The server never answers, so a window would last for 7.5 s.
    for writer in machine.writers:
        assert writer.longest_stall_ms() < 4000.0
    machine.assert_rcu_is_back()


def test_ctrl_c_in_a_tls_handshake_that_never_ends_exits_130_at_once(disk: ScratchFilesystem) -> None:
    has_begun = threading.Event()

    def never_answers(connection: socket.socket) -> None:
        while connection.recv(4096):
            has_begun.set()

    with bare_server(never_answers) as port:
        uri = f"https://127.0.0.1:{port}/disks/disk?sv=2018-03-28&sr=b&sig=c2lnbmF0dXJl%3D&sp=rw"
        with SnapshotRun([disk.mount_point], [uri], f"--connect-timeout={LONG}") as run:
            assert has_begun.wait(15.0)
            assert_ctrl_c_ends(run)


def test_ctrl_c_in_a_syncfs_that_hangs_exits_130_at_once(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    rescue([upper.mount_point, lower.mount_point], after_seconds=25.0)
    (upper.mount_point / "dirty").write_bytes(bytes(1 << 20))
    # The loop device cannot write to its file.
    with freezing.frozen(lower.mount_point):
        options = f"--sync-timeout={LONG}"
        with SnapshotRun([upper.mount_point], [server.uri("disk")], options) as run:
            wait_until_the_disk_is_waited_for("vmsnapshot-sync", upper.mount_point)
            assert_ctrl_c_ends(run)
    assert server.requests() == []
    assert not freezing.is_frozen(upper.mount_point)


def test_ctrl_c_while_a_btrfs_does_not_answer_exits_130_at_once(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    lower = scratch.make_on_loop("lower", "xfs", size_mib=512)
    silent = scratch.make_on_loop("silent", "btrfs", size_mib=256, inside=lower)
    processes.run_bounded(["sync", "--file-system", silent.mount_point])
    rescue([silent.mount_point, lower.mount_point], after_seconds=25.0)
    with devices_locked(silent, lower):
        options = f"--sync-timeout={LONG}"
        with SnapshotRun([silent.mount_point], [server.uri("disk")], options) as run:
            wait_until_the_disk_is_waited_for("vmsnapshot-scru", silent.mount_point)
            assert_ctrl_c_ends(run)
    assert server.requests() == []
    assert not freezing.is_frozen(silent.mount_point)


def assert_ctrl_c_ends(run: SnapshotRun) -> None:
    """Sends SIGINT, and checks that the run ends at once, with the right error and nothing left behind."""
    assert run.process.poll() is None
    sent_at = time.monotonic()
    run.send(signal.SIGINT)
    finished = run.finish(limit_seconds=15.0)
    assert time.monotonic() - sent_at < END_LIMIT_SECONDS
    assert (finished.status, finished.error_code) == (130, "interrupted")
    assert read_status()["runs"] == []


def wait_until_the_disk_is_waited_for(name: str, mount_point: Path) -> None:
    """Waits until a thread of the run's companion process ``name`` is in state D on ``mount_point``."""
    until = time.monotonic() + 15.0
    while "D" not in states_of_threads(name, mount_point):
        assert time.monotonic() < until, f"no thread of {name} waits"
        time.sleep(0.01)


def states_of_threads(name: str, mount_point: Path) -> Iterator[str]:
    """Yields the state of each thread of the processes ``name`` that have ``mount_point`` open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().rstrip("\n") == name and mount_point in [
                file.readlink() for file in (process / "fd").iterdir()
            ]:
                for task in (process / "task").iterdir():
                    yield (task / "stat").read_text().rpartition(")")[2].split()[0]
