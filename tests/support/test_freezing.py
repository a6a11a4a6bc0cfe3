"""The helpers for tests that freeze: the guard, the rescue, the writers, and the clean-up."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.conftest import ArmRescue
from tests.support import freezing
from tests.support.filesystems import REPOSITORY, ScratchFilesystems, loop_devices_below, scratch_directory
from tests.support.mounts import NotAScratchFilesystemError, assert_not_root, mounts_below
from tests.support.rescue import RCU_EXPEDITED, RescueThaw, thaw_at_once
from tests.support.writers import Writer, writing


@pytest.mark.parametrize("path", [Path("/"), Path("/proc/self"), REPOSITORY])
def test_guard_refuses_the_root_and_a_path_that_is_not_a_mount_point(path: Path) -> None:
    with pytest.raises(NotAScratchFilesystemError):
        assert_not_root(path)


def test_guard_refuses_a_bind_mount_of_the_root(scratch: ScratchFilesystems) -> None:
    bound = scratch.directory / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", scratch.directory, bound], check=True, timeout=10)
    with pytest.raises(NotAScratchFilesystemError):
        freezing.freeze(bound)


@pytest.mark.parametrize("filesystem_type", ["ext4", "xfs", "btrfs"])
def test_a_frozen_filesystem_blocks_a_writer_until_the_rescue_thaws(
    scratch: ScratchFilesystems, rescue: ArmRescue, filesystem_type: str
) -> None:
    filesystem = scratch.make_on_loop("disk", filesystem_type)
    with Writer(filesystem.mount_point) as writer:
        writer.wait_until_writing()
        armed = rescue([filesystem.mount_point], after_seconds=1.0, linger_seconds=0.3)
        before_freeze_ns = time.monotonic_ns()
        freezing.freeze(filesystem.mount_point)
        assert freezing.is_frozen(filesystem.mount_point)
        assert armed.wait(limit_seconds=15.0) == [filesystem.mount_point]
        assert not freezing.is_frozen(filesystem.mount_point)
        writer.wait_until_writing()
        assert 500 < writer.longest_stall_ms(since_ns=before_freeze_ns) < 5000
        assert writer.stop()


def test_a_blocked_writer_shows_its_stall_while_it_lasts(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> None:
    filesystem = scratch.make_on_zram("disk")
    with Writer(filesystem.mount_point) as writer:
        writer.wait_until_writing()
        rescue([filesystem.mount_point])
        with freezing.frozen(filesystem.mount_point):
            time.sleep(0.3)
            assert writer.longest_stall_ms() > 200
        assert [stall.length_ms > 200 for stall in writer.stalls(longer_than_ms=200)] == [True]


def test_rescue_thaws_when_its_owner_was_killed(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point], after_seconds=20.0)
    program = """
        import os, signal, sys
        from pathlib import Path
        from tests.support import freezing
        from tests.support.rescue import RescueThaw
        rescue = RescueThaw([Path(sys.argv[1])], 1.0, linger_seconds=0.5)
        freezing.freeze(Path(sys.argv[1]))
        os.killpg(0, signal.SIGKILL)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), filesystem.mount_point],
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert owner.wait(timeout=20) == -signal.SIGKILL
    assert freezing.is_frozen(filesystem.mount_point)
    until = time.monotonic() + 10.0
    while freezing.is_frozen(filesystem.mount_point):
        assert time.monotonic() < until, "the rescue did not thaw"


def test_rescue_restores_rcu_expedited(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    before = RCU_EXPEDITED.read_text()
    armed = rescue([filesystem.mount_point], after_seconds=0.3, linger_seconds=0.3)
    RCU_EXPEDITED.write_text("1" if before.strip() == "0" else "0")
    assert armed.wait(limit_seconds=15.0) == []
    assert RCU_EXPEDITED.read_text() == before


def test_cancelled_rescue_thaws_nothing(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point], after_seconds=10.0)
    with RescueThaw([filesystem.mount_point], 0.5) as cancelled, freezing.frozen(filesystem.mount_point):
        assert cancelled.cancel() == []
        time.sleep(0.7)
        assert freezing.is_frozen(filesystem.mount_point)


def test_thaw_at_once_returns_which_were_frozen(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    first, second = scratch.make_on_zram("first"), scratch.make_on_zram("second")
    rescue([first.mount_point, second.mount_point])
    freezing.freeze(second.mount_point)
    assert thaw_at_once([first.mount_point, second.mount_point]) == [second.mount_point]


def test_a_second_freeze_answers_busy(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    with freezing.frozen(filesystem.mount_point):
        assert freezing.start_freeze(filesystem.mount_point).wait(timeout=5) == errno.EBUSY
    assert freezing.start_thaw(filesystem.mount_point).wait(timeout=5) == errno.EINVAL


def test_rescue_thaws_a_stack_whose_upper_freeze_hangs(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    (upper.mount_point / "dirty").write_bytes(bytes(1024 * 1024))
    armed = rescue([upper.mount_point, lower.mount_point], after_seconds=1.0, linger_seconds=1.0)
    freezing.freeze(lower.mount_point)
    hanging = freezing.start_freeze(upper.mount_point)
    assert lower.mount_point in armed.wait(limit_seconds=20.0)
    assert hanging.wait(timeout=5) == 0
    assert not freezing.is_frozen(lower.mount_point)
    assert not freezing.is_frozen(upper.mount_point)


def test_clean_up_removes_filesystems_that_are_frozen_and_written_to(root: None) -> None:  # noqa: ARG001
    with scratch_directory() as directory:
        scratch = ScratchFilesystems(directory)
        lower = scratch.make_on_loop("lower", size_mib=1024)
        middle = scratch.make_on_loop("middle", "xfs", size_mib=512, inside=lower)
        upper = scratch.make_on_loop("upper", "btrfs", inside=middle)
        memory = scratch.make_on_zram("memory")
        assert len(mounts_below(directory)) == 4
        assert len(loop_devices_below(directory)) == 3
        with writing([upper.mount_point, memory.mount_point]) as writers:
            freezing.freeze(upper.mount_point)
            freezing.freeze(memory.mount_point)
            for writer in writers:
                writer.tell_to_stop()
            # A stuck writer keeps its filesystem busy until close() thaws it.
            scratch.close()
        assert mounts_below(directory) == []
        assert loop_devices_below(directory) == []
        assert not memory.device.exists()
    assert not directory.exists()


def test_clean_up_removes_what_a_killed_run_left(root: None) -> None:  # noqa: ARG001
    program = """
        import os, signal
        from tests.support.filesystems import ScratchFilesystems, scratch_directory
        with scratch_directory() as directory:
            scratch = ScratchFilesystems(directory)
            lower = scratch.make_on_loop("lower", size_mib=256)
            scratch.make_on_loop("upper", inside=lower)
            scratch.make_on_zram("memory")
            print(directory, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=30,
        check=False,
    )
    left = Path(killed.stdout.decode().strip())
    assert len(mounts_below(left)) == 3, killed.stderr.decode()
    with scratch_directory():
        assert mounts_below(left) == []
        assert loop_devices_below(left) == []
        assert not left.exists()
