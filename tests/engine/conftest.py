"""Fixtures: plans, a disk, and a machine whose window stays open while a test breaks something."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer
from tests.support import fake_native
from tests.support.command import SnapshotRun, read_status, run_command
from tests.support.fault_server import FaultServer, NeverAnswers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.rescue import RCU_EXPEDITED
from tests.support.writers import Writer

# Without a compiled engine, pytest must still be able to collect these tests in order to skip them.
fake_native.make_importable()

import vmsnapshot  # noqa: E402  (needs an engine, real or not)

# The watchdog thaws within this time after the deadline, and after the end of the run.
THAW_LIMIT_MS = 100.0
RESCUE_SECONDS = 12.0


@pytest.fixture(scope="session", autouse=True)
def the_engine_is_compiled(compiled_engine: None) -> None:
    """Skips every test of this folder where there is no compiled engine."""


@pytest.fixture(scope="module")
def plan() -> vmsnapshot.Plan:
    """Returns a plan of this machine with everything excluded, so that no test can freeze anything of it.

    It suffices for tests of arguments: `prepare` checks them before it opens anything of the plan."""
    made = vmsnapshot.plan(exclude=["/**"])
    assert made.filesystems == []
    return made


@pytest.fixture
def disk(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """Returns an ext4 with the rescue armed."""
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    return filesystem


@dataclass
class Machine:
    """Two filesystems with a writer on each, a blob server, and the setting of RCU before the test."""

    filesystems: list[ScratchFilesystem]
    writers: list[Writer]
    server: FaultServer
    rcu_before: str

    @property
    def mount_points(self) -> list[Path]:
        """Where the filesystems are mounted."""
        return [filesystem.mount_point for filesystem in self.filesystems]

    @contextlib.contextmanager
    def open_window(
        self,
        *options: str | Path,
        thaw_timeout: float = 5.0,
        before: tuple[str, ...] = (),
        output: int = -1,
        errors: int = -1,
    ) -> Iterator[SnapshotRun]:
        """Starts a run, and waits until its window is open; its blob server never answers."""
        self.server.script("disk", NeverAnswers())
        self.server.forget_requests()
        with SnapshotRun(
            self.mount_points,
            [self.server.uri("disk")],
            *options,
            thaw_timeout=thaw_timeout,
            before=before,
            output=output,
            errors=errors,
        ) as run:
            run.wait_until_open(self.server)
            yield run

    def assert_thawed_within(self, limit_ms: float, *, since_ns: int) -> None:
        """Checks that every writer resumed within the limit after ``since_ns``, and that RCU was restored."""
        for writer in self.writers:
            assert held_ms(writer, since_ns=since_ns) < limit_ms
        self.assert_rcu_is_back()

    def assert_rcu_is_back(self) -> None:
        """Checks that ``rcu_expedited`` has the value from before the run."""
        assert read_rcu() == self.rcu_before


@pytest.fixture
def machine(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> Iterator[Machine]:
    """Makes an ext4 and an xfs, starts a writer on each, and arms the rescue for both."""
    filesystems = [scratch.make_on_loop("first"), scratch.make_on_loop("second", "xfs")]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(Writer(filesystem.mount_point, interval_ms=2)) for filesystem in filesystems
        ]
        for writer in writers:
            writer.wait_until_writing()
        rescue([filesystem.mount_point for filesystem in filesystems], after_seconds=RESCUE_SECONDS)
        machine = Machine(filesystems, writers, fault_server(), read_rcu())
        yield machine
        forget_what_was_left_frozen(machine.mount_points)


def held_ms(writer: Writer, *, since_ns: int, limit_seconds: float = 10.0) -> float:
    """Returns how long after ``since_ns`` a writer that was stuck then finished its write."""
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        # `stalls` includes the write in progress. Only a later write proves that this one has ended.
        stalls = writer.stalls(since_ns=since_ns)
        held = [stall for stall in stalls if stall.start_ns <= since_ns]
        if held and stalls[-1].start_ns > since_ns:
            return (held[-1].start_ns - since_ns) / 1e6 + held[-1].length_ms
        time.sleep(0.002)
    raise AssertionError(f"the writer in {writer.directory} is still stuck, or was not stuck at all")


def forget_what_was_left_frozen(mount_points: Sequence[Path]) -> None:
    """Runs ``vmsnapshot thaw`` on what a failed test left frozen: the next run would refuse to start."""
    names = set(map(str, mount_points))
    if any(item["mount_point"] in names for item in read_status()["frozen"]):
        run_command("thaw")


def read_rcu() -> str:
    """Returns the machine's setting of expedited RCU."""
    return RCU_EXPEDITED.read_text()
