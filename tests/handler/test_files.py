"""A reader sees the old or the new content of a file, never a part of one."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from vmsnapshot.handler.files import LIMIT_BYTES, open_or_create, read_bytes, read_text, write_atomically


@pytest.fixture
def status(tmp_path: Path) -> Path:
    return tmp_path / "7.status"


def test_what_was_written_is_read_back(status: Path) -> None:
    write_atomically(status, "first")
    write_atomically(status, "zweiter, ä\r\n")
    assert read_text(status) == "zweiter, ä\r\n"
    assert status.read_bytes() == "zweiter, ä\r\n".encode()


def test_nothing_but_the_file_is_left(status: Path) -> None:
    write_atomically(status, "text")
    assert list(status.parent.iterdir()) == [status]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_mode_is_as_asked_whatever_the_umask(status: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(status, "text", mode)
    finally:
        os.umask(before)
    assert status.stat().st_mode & 0o7777 == mode


def test_text_that_cannot_be_encoded_leaves_everything_as_it_was(status: Path) -> None:
    write_atomically(status, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(status, "\udc80")
    assert [(path, path.read_text()) for path in status.parent.iterdir()] == [(status, "before")]


def test_failed_rename_leaves_nothing_behind(status: Path) -> None:
    status.mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(status, "text")
    assert list(status.parent.iterdir()) == [status]


def test_full_disk_leaves_everything_as_it_was(status: Path) -> None:
    write_atomically(status, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Instead of a full disk, a limit of 4 bytes for every file that this process writes.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_atomically(status, "more than four bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert [(path, path.read_text()) for path in status.parent.iterdir()] == [(status, "before")]


@pytest.fixture
def full_disk(root: None, tmp_path: Path) -> Iterator[Path]:  # noqa: ARG001 (requested for its effect)
    """Mounts a small filesystem in memory, with room for one more file."""
    directory = tmp_path / "disk"
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=2"]
    subprocess.run(["mount", *options, "full-disk", str(directory)], check=True, timeout=10)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=10)


def test_file_is_rewritten_in_place_if_no_second_one_can_be_made(full_disk: Path) -> None:
    file = full_disk / "7.status"
    write_atomically(file, "a long transitioning status", 0o644)
    with pytest.raises(OSError):
        (full_disk / "another").touch()
    write_atomically(file, "final")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("final", 0o600)
    write_atomically(file, "")
    assert file.read_text() == ""
    assert list(full_disk.iterdir()) == [file]


def test_file_that_has_no_room_in_place_either_stays_as_it_was(full_disk: Path) -> None:
    file = full_disk / "7.status"
    write_atomically(file, "transitioning")
    with pytest.raises(OSError) as caught:
        write_atomically(file, "x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_text() == "transitioning"


def test_file_whose_mode_cannot_be_set_in_place_stays_as_it_was(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_descriptor: int, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    file = full_disk / "7.status"
    write_atomically(file, "transitioning")
    monkeypatch.setattr(os, "fchmod", refuses)
    with pytest.raises(OSError) as caught:
        write_atomically(file, "final, and longer than before")
    assert caught.value.errno == errno.ENOSPC
    assert file.read_text() == "transitioning"


def test_file_is_rewritten_in_place_whole_although_the_kernel_takes_it_in_pieces(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = full_disk / "7.status"
    write_atomically(file, "transitioning")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:4]))
    write_atomically(file, "final, and longer than before")
    assert file.read_text() == "final, and longer than before"


def test_missing_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing/7.status", "text")
    assert list(tmp_path.iterdir()) == []


def test_reader_never_sees_half_a_file(status: Path) -> None:
    documents = {"a" * 300_000, "b" * 100_000}
    write_atomically(status, "a" * 300_000)
    seen: list[str | None] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(read_text(status))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            for document in documents:
                write_atomically(status, document)
    finally:
        done.set()
        reader.join(timeout=10)
    assert seen
    assert set(seen) <= documents


def test_no_name_that_the_agent_reads_is_used_on_the_way(
    status: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        names.extend(path.name for path in target.parent.iterdir())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_atomically(status, "text")
    assert len(names) == 1
    assert not names[0].endswith((".status", ".settings"))


def test_missing_file_is_none(status: Path) -> None:
    assert read_text(status) is None


def test_damaged_file_has_a_text(status: Path) -> None:
    status.write_bytes(b"\xef\xbb\xbf12\xff")
    assert read_text(status) == "12\ufffd"


def test_unreadable_file_is_not_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not a regular file"):
        read_text(tmp_path)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_file(path: Path) -> None:
    target = path.with_name("target")
    target.write_text("target")
    path.symlink_to(target)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


IMPOSTORS = [make_fifo, make_socket, link_to_file, link_to_device, link_to_nothing]


@pytest.mark.parametrize("make", IMPOSTORS)
def test_what_is_not_a_file_is_neither_read_nor_written_to(
    status: Path, make: Callable[[Path], None]
) -> None:
    make(status)
    before = sorted(status.parent.iterdir())
    with pytest.raises(OSError, match="not a regular file"):
        read_text(status)
    with pytest.raises(OSError):
        open_or_create(status, os.O_WRONLY | os.O_APPEND)
    assert sorted(status.parent.iterdir()) == before


@pytest.mark.parametrize("make", IMPOSTORS)
def test_what_is_not_a_file_is_replaced_and_its_target_is_not(
    status: Path, make: Callable[[Path], None]
) -> None:
    make(status)
    write_atomically(status, "text")
    assert not status.is_symlink()
    assert status.read_text() == "text"
    target = status.with_name("target")
    assert not target.exists() or target.read_text() == "target"


def test_configuration_may_be_a_link_to_a_file(status: Path) -> None:
    link_to_file(status)
    assert read_bytes(status, follows_link=True) == b"target"


@pytest.mark.parametrize("make", [make_fifo, link_to_device])
def test_configuration_may_not_be_or_lead_to_anything_else(
    status: Path, make: Callable[[Path], None]
) -> None:
    make(status)
    link = status.with_name("link")
    link.symlink_to(status)
    for path in (status, link):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path, follows_link=True)


def test_directory_of_a_file_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "directory")
    write_atomically(tmp_path / "link/7.status", "text")
    assert read_text(tmp_path / "link/7.status") == "text"


def test_file_that_is_too_long_is_not_read(status: Path) -> None:
    status.write_bytes(b"x" * LIMIT_BYTES)
    assert len(read_text(status) or "") == LIMIT_BYTES
    os.truncate(status, 1 << 40)
    with pytest.raises(OSError, match=f"longer than {LIMIT_BYTES} bytes"):
        read_text(status)


def test_a_file_that_is_opened_or_created_is_new_and_private_or_the_old_one(status: Path) -> None:
    for text in (b"first", b"second"):
        descriptor = open_or_create(status, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
    assert status.read_bytes() == b"firstsecond"
    assert status.stat().st_mode & 0o777 == 0o600


def test_a_file_that_another_process_creates_first_is_opened_as_it_is(
    status: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual_open = os.open

    def open_late(path: object, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            status.write_bytes(b"of another process")
        return usual_open(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_late)
    descriptor = open_or_create(status, os.O_RDONLY)
    monkeypatch.undo()
    try:
        assert os.read(descriptor, 100) == b"of another process"
    finally:
        os.close(descriptor)
