"""The lock keeps other processes from freezing, and taking it succeeds only if it is really held."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import end
from vmsnapshot.handler.freeze.lock import (
    SAFE_FREEZE_LOCK_FILE,
    LockHeldError,
    LockUnavailableError,
    SafeFreezeLock,
)

LIMIT_SECONDS = 10.0

# Locks the file in the same way as the predecessor.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", flush=True)
else:
    print("held", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that tries to take the lock. It holds the lock or was refused."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", HOLDER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.holds = self.process.stdout.readline() == b"held\n"

    def let_go(self) -> None:
        """Makes the process release the lock and end."""
        assert self.process.stdin is not None
        # If it was refused the lock, it has ended already.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        assert end(self.process, limit_seconds=LIMIT_SECONDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "azure/MicrosoftRecoverySvcsSafeFreezeLock/SafeFreezeLockFile"


@pytest.fixture
def hold(path: Path) -> Iterator[Callable[[], Holder]]:
    holders: list[Holder] = []

    def start() -> Holder:
        path.parent.mkdir(parents=True, exist_ok=True)
        holders.append(Holder(path))
        return holders[-1]

    yield start
    for holder in holders:
        if holder.process.poll() is None:
            holder.process.kill()
        end(holder.process, limit_seconds=LIMIT_SECONDS)
        for pipe in (holder.process.stdin, holder.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def test_place_of_the_lock_is_the_predecessors() -> None:
    assert str(SAFE_FREEZE_LOCK_FILE) == "/etc/azure/MicrosoftRecoverySvcsSafeFreezeLock/SafeFreezeLockFile"


def test_another_process_is_refused_while_we_have_it(path: Path, hold: Callable[[], Holder]) -> None:
    with SafeFreezeLock(path=path):
        assert not hold().holds
    assert hold().holds


def test_lock_is_refused_while_another_process_has_it(path: Path, hold: Callable[[], Holder]) -> None:
    holder = hold()
    with pytest.raises(LockHeldError) as caught:
        SafeFreezeLock(limit_seconds=0, path=path)
    assert caught.value.code == "lock-held"
    assert f"process {holder.process.pid} " in str(caught.value)


def test_waiting_ends_at_the_limit(path: Path, hold: Callable[[], Holder]) -> None:
    assert hold().holds
    started = time.monotonic()
    with pytest.raises(LockHeldError):
        SafeFreezeLock(limit_seconds=0.35, path=path)
    assert 0.35 <= time.monotonic() - started < LIMIT_SECONDS


def test_tries_leave_no_file_open(path: Path, hold: Callable[[], Holder]) -> None:
    assert hold().holds
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(LockHeldError):
        SafeFreezeLock(limit_seconds=0.25, path=path)
    with pytest.raises(LockUnavailableError):
        SafeFreezeLock(path=path / "below/a file")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_waiting_ends_when_it_is_given_up(path: Path, hold: Callable[[], Holder]) -> None:
    assert hold().holds
    answers = iter([False, False, True])
    with pytest.raises(LockHeldError):
        SafeFreezeLock(limit_seconds=LIMIT_SECONDS * 100, give_up=lambda: next(answers), path=path)
    assert next(answers, "all asked") == "all asked"


def test_lock_is_taken_when_the_holder_releases_it(path: Path, hold: Callable[[], Holder]) -> None:
    holder = hold()
    threading.Timer(0.15, holder.let_go).start()
    with SafeFreezeLock(limit_seconds=LIMIT_SECONDS, path=path):
        assert not hold().holds


def test_lock_is_taken_when_the_holder_is_killed(path: Path, hold: Callable[[], Holder]) -> None:
    holder = hold()
    threading.Timer(0.15, holder.process.kill).start()
    with SafeFreezeLock(limit_seconds=LIMIT_SECONDS, path=path):
        assert not hold().holds


def test_file_deleted_while_we_wait_is_not_taken_for_the_lock(path: Path, hold: Callable[[], Holder]) -> None:
    first = hold()
    second: list[Holder] = []

    def delete_and_hold_anew() -> bool:
        # Between two tries, the predecessor deletes the file and a third process locks a new one.
        if not second:
            path.unlink()
            second.append(hold())
            first.let_go()
        return False

    with pytest.raises(LockHeldError) as caught:
        SafeFreezeLock(limit_seconds=0.25, give_up=delete_and_hold_anew, path=path)
    assert second[0].holds
    assert f"process {second[0].process.pid} " in str(caught.value)


def test_file_deleted_between_opening_and_locking_is_not_taken_for_the_lock(
    path: Path, hold: Callable[[], Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    lockf = fcntl.lockf
    deleted: list[Path] = []

    def delete_first(descriptor: int, operation: int) -> None:
        if not deleted:
            path.unlink()
            deleted.append(path)
        lockf(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", delete_first)
    with SafeFreezeLock(limit_seconds=LIMIT_SECONDS, path=path):
        assert deleted
        # The lock is on the file that other processes open.
        assert not hold().holds


def test_file_is_neither_deleted_nor_emptied(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("whatever")
    SafeFreezeLock(path=path).close()
    assert path.read_text() == "whatever"


def test_lock_is_given_back_when_the_run_raises(path: Path, hold: Callable[[], Holder]) -> None:
    with pytest.raises(ZeroDivisionError), SafeFreezeLock(path=path):
        _ = 1 / 0
    assert hold().holds


def test_lock_can_be_given_back_twice(path: Path) -> None:
    lock = SafeFreezeLock(path=path)
    lock.close()
    lock.close()


def test_folder_that_cannot_be_made_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "azure").write_text("a file in its place")
    with pytest.raises(LockUnavailableError) as caught:
        SafeFreezeLock(path=tmp_path / "azure/MicrosoftRecoverySvcsSafeFreezeLock/SafeFreezeLockFile")
    assert caught.value.code == "lock-unavailable"


@pytest.fixture
def writable(root: None, path: Path, tmp_path: Path) -> Iterator[Path]:  # noqa: ARG001 (requested for its effect)
    """Makes the directory of the lock read-only. Returns the lock's file under a name that can be written."""
    directory = tmp_path / "writable"
    directory.mkdir()
    (directory / path.name).touch()
    path.parent.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(directory), str(path.parent)], check=True, timeout=10)
    try:
        remount = ["mount", "-o", "remount,bind,ro", str(path.parent)]
        subprocess.run(remount, check=True, timeout=10)
        yield directory / path.name
    finally:
        subprocess.run(["umount", str(path.parent)], check=True, timeout=10)


def test_file_on_a_read_only_filesystem_is_locked_against_other_programs(path: Path, writable: Path) -> None:
    with SafeFreezeLock(path=path):
        holder = Holder(writable)
        assert not holder.holds
        holder.let_go()


def test_lock_of_another_program_on_a_read_only_filesystem_is_respected(path: Path, writable: Path) -> None:
    holder = Holder(writable)
    assert holder.holds
    with pytest.raises(LockHeldError):
        SafeFreezeLock(path=path, limit_seconds=0)
    holder.let_go()


def test_lock_that_does_not_exist_and_cannot_be_created_is_missing(
    root: None,  # noqa: ARG001 (requested for its effect)
    path: Path,
) -> None:
    directory = path.parent.parent
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "full", str(directory)], check=True, timeout=10
    )
    try:
        with pytest.raises(LockUnavailableError) as caught:
            SafeFreezeLock(path=path)
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=10)
    assert caught.value.is_missing


def test_file_that_cannot_be_opened_is_no_lock(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(LockUnavailableError):
        SafeFreezeLock(path=path)


def test_read_only_filesystem_is_no_lock() -> None:
    # Not even root can make a directory in /proc.
    with pytest.raises(LockUnavailableError):
        SafeFreezeLock(path=Path("/proc/self/azure/SafeFreezeLock/SafeFreezeLockFile"))
