"""An open window to break things in: real filesystems, held writers, and a blob server that keeps it open."""

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

# Without a compiled engine the tests are skipped with a reason; they have to be collected for that.
fake_native.make_importable()

import vmsnapshot  # noqa: E402  (needs an engine, real or not)

# The limit that the product promises, for a thaw after its deadline or after the end of its parent.
THAW_LIMIT_MS = 100.0
RESCUE_SECONDS = 12.0


@pytest.fixture(scope="session", autouse=True)
def the_engine_is_compiled(compiled_engine: None) -> None:
    """Every test here is about the engine itself."""


# A plan that cannot be made any smaller has to be asked for by a pattern, so `prepare` is given this one:
# all arguments are checked before anything of the plan is opened.
@pytest.fixture(scope="module")
def plan() -> vmsnapshot.Plan:
    """A plan of this machine with everything excluded; nothing of it could ever be frozen."""
    made = vmsnapshot.plan(exclude=["/**"])
    assert made.filesystems == []
    return made


@pytest.fixture
def disk(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """An ext4 with the rescue armed."""
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    return filesystem


@dataclass
class Machine:
    """Two filesystems with a writer each, a blob server, and how RCU was set before."""

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
        """A run whose window is open, and stays so: its blob server never answers."""
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
        """Every writer that was held at ``since_ns`` went on within the limit, and RCU is as it was."""
        for writer in self.writers:
            assert held_ms(writer, since_ns=since_ns) < limit_ms
        self.assert_rcu_is_back()

    def assert_rcu_is_back(self) -> None:
        """``rcu_expedited`` is what it was before the run."""
        assert read_rcu() == self.rcu_before


@pytest.fixture
def machine(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> Iterator[Machine]:
    """An ext4 and an xfs with a writer each; the rescue is armed for both."""
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
    """How long after ``since_ns`` the writer, which was held then, finished its write."""
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        # A writer counts its write under way among its stalls; a later one says that it has ended.
        stalls = writer.stalls(since_ns=since_ns)
        held = [stall for stall in stalls if stall.start_ns <= since_ns]
        if held and stalls[-1].start_ns > since_ns:
            return (held[-1].start_ns - since_ns) / 1e6 + held[-1].length_ms
        time.sleep(0.002)
    raise AssertionError(f"the writer in {writer.directory} is still held, or was not held at all")


def forget_what_was_left_frozen(mount_points: Sequence[Path]) -> None:
    """Thaws by the product's own means what a failed test left: its next run would refuse to begin."""
    names = set(map(str, mount_points))
    if any(item["mount_point"] in names for item in read_status()["frozen"]):
        run_command("thaw")


def read_rcu() -> str:
    """The machine's setting of expedited RCU."""
    return RCU_EXPEDITED.read_text()
