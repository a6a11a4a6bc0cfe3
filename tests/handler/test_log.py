"""The log has every line in the right place and no secret, and never writes to a disk that may be frozen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmsnapshot.handler import log as log_module
from vmsnapshot.handler.log import HOST_BASED_EXTENSION_LOG, Level, Log, shell_line

WRITER = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux-1.0"
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"
SIGNATURE = "c2VjcmV0LW9mLWEtdGVzdA"
SAS_URI = f"https://acct.blob.example/c/b?sv=2020-01-01&sig={SIGNATURE}&se=2030"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "extension.log"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path, WRITER)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def texts_of(path: Path) -> list[str]:
    return [line.partition("]")[2] for line in lines_of(path)]


def test_blob_has_moment_level_and_text_of_each_line(log: Log) -> None:
    log.info("began")
    log.warning("looks odd")
    log.error("did not work")
    expected = [("Info", "began"), ("Warning", "looks odd"), ("Error", "did not work")]
    pattern = "".join(f"{MOMENT}  {level}  {text} \n" for level, text in expected)
    assert re.fullmatch(pattern + "Tail of shell script log:\n", log.blob_text().decode())


def test_file_has_moment_writer_and_text_of_each_line(log: Log, file: Path) -> None:
    log.info("began")
    log.error("did not work")
    first, second = lines_of(file)
    assert re.fullmatch(rf"{MOMENT} \[{re.escape(WRITER)}\]began", first)
    assert re.fullmatch(rf"{MOMENT} \[{re.escape(WRITER)}\]Error: did not work", second)


def test_file_may_have_another_name(tmp_path: Path) -> None:
    Log(tmp_path, WRITER, file_name=HOST_BASED_EXTENSION_LOG).info("began")
    assert [path.name for path in tmp_path.iterdir()] == ["host_based_extension.log"]


def test_blob_ends_with_the_last_ten_lines_of_the_shell_log(log: Log, tmp_path: Path) -> None:
    for number in range(12):
        shell_line(tmp_path, f"command {number}")
    before, _, tail = log.blob_text().decode().partition("Tail of shell script log:\n")
    assert before == ""
    assert re.fullmatch("".join(f"{MOMENT} command {number}\n" for number in range(2, 12)), tail)


def test_blob_is_utf_8_whatever_is_logged(log: Log, file: Path) -> None:
    log.info("ä 漢 \U0001f512 \udcff")
    assert "ä 漢 \U0001f512 \\udcff" in log.blob_text().decode()
    assert texts_of(file) == ["ä 漢 \U0001f512 \\udcff"]


def test_no_signature_is_in_file_blob_or_events(log: Log, tmp_path: Path) -> None:
    log.error(f"could not reach {SAS_URI}")
    shell_line(tmp_path, f"command with {SAS_URI}")
    with (tmp_path / "shell.log").open("a") as shell_log:
        shell_log.write(f"a line of another program with {SAS_URI}\n")
    # The limit of a line cuts this one in the middle of the signature.
    length = log_module.LINE_LIMIT_CHARACTERS - SAS_URI.index(SIGNATURE) - 5
    log.error("x" * length + SAS_URI)
    everything = [
        log.blob_text().decode(),
        str(log.warnings_and_errors()),
        (tmp_path / "extension.log").read_text(),
    ]
    assert all("acct.blob.example" in text for text in everything)
    assert SIGNATURE[:3] not in "".join(everything)
    assert SIGNATURE not in lines_of(tmp_path / "shell.log")[0]


def test_signature_is_not_let_through_by_a_cut_into_the_shell_log(log: Log, tmp_path: Path) -> None:
    # The tail begins in the middle of this signature, where the text `sig=` no longer marks it as one.
    signature = SIGNATURE * 10_000
    (tmp_path / "shell.log").write_text(f"https://acct.blob.example/?sig={signature}\nlast\n")
    assert log.blob_text() == b"Tail of shell script log:\nlast\n"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\x00b", "a\x85b", "a\u2028b", "a\tb"])
def test_any_text_is_one_line(log: Log, file: Path, text: str) -> None:
    log.info(text)
    (line,) = texts_of(file)
    assert line in ("a b", "a [2Jb")
    assert len(log.blob_text().decode().splitlines()) == 2


def test_long_text_is_cut(log: Log, file: Path) -> None:
    log.info("x" * 1_000_000)
    (line,) = texts_of(file)
    assert line == "x" * log_module.LINE_LIMIT_CHARACTERS + "... (1000000 characters)"


def test_blob_keeps_the_first_and_the_last_of_too_many_lines(log: Log) -> None:
    count = 2_000
    for number in range(count):
        log.info(f"number {number} " + "x" * 2_000)
    blob = log.blob_text()
    assert 1_900_000 < len(blob) < 2_200_000
    first, left_out, last = re.split(rb"(\d+) lines ", blob)
    firsts, lasts = (
        [int(number) for number in re.findall(rb"number (\d+) ", part)] for part in (first, last)
    )
    assert firsts == list(range(len(firsts)))
    assert lasts == list(range(len(firsts) + int(left_out), count))
    assert len(firsts) > 100
    assert len(lasts) > 100
    moments = re.findall(f"^{MOMENT}", blob.decode(), re.MULTILINE)
    assert moments == sorted(moments)


def test_nothing_is_left_out_of_a_log_of_usual_size(log: Log) -> None:
    for number in range(5_000):
        log.info(f"number {number} " + "x" * 100)
    assert log.blob_text().count(b"number ") == 5_000


@contextlib.contextmanager
def suspended(log: Log, *, discard: bool = False) -> Iterator[None]:
    """Suspends a log within a `with` block."""
    log.suspend(discard=discard)
    try:
        yield
    finally:
        log.resume()


def test_suspended_log_touches_no_file_and_writes_afterwards(log: Log, file: Path) -> None:
    log.info("before")
    with suspended(log):
        file.rename(file.with_name("moved"))
        log.info("frozen")
        log.warning("still frozen")
        assert [path.name for path in file.parent.iterdir()] == ["moved"]
        assert b"still frozen" in log.blob_text()
    log.info("after")
    assert texts_of(file) == ["frozen", "Warning: still frozen", "after"]


def test_suspended_log_writes_even_if_the_run_raises(log: Log, file: Path) -> None:
    with pytest.raises(ZeroDivisionError), suspended(log):
        log.info("frozen")
        _ = 1 / 0
    assert texts_of(file) == ["frozen"]


def test_discarded_lines_are_counted_and_their_errors_still_become_events(log: Log, file: Path) -> None:
    with suspended(log, discard=True):
        log.info("one")
        log.error("two")
    log.info("after")
    first, second = texts_of(file)
    assert first.startswith("2 lines ")
    assert second == "after"
    assert b"  two " not in log.blob_text()
    assert [line.text for line in log.warnings_and_errors()] == ["two"]


def test_nothing_is_said_of_no_discarded_lines(log: Log, file: Path) -> None:
    with suspended(log, discard=True):
        pass
    assert not file.exists()


def test_suspending_waits_for_a_line_that_is_being_written(
    log: Log, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    append = log_module._append

    def slowly(path: Path, content: bytes) -> int:
        writing.set()
        assert go_on.wait(10)
        return append(path, content)

    monkeypatch.setattr(log_module, "_append", slowly)
    writer = threading.Thread(target=log.info, args=("written before the freeze",))
    writer.start()
    assert writing.wait(10)
    threading.Timer(0.1, go_on.set).start()
    with suspended(log):
        assert texts_of(file) == ["written before the freeze"]
    writer.join(timeout=10)


def test_lines_of_many_threads_are_all_there_and_whole(log: Log, file: Path) -> None:
    def write(thread: int) -> None:
        for number in range(100):
            log.info(f"{thread}:{number}:" + "x" * 200)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    with suspended(log):
        pass
    for thread in threads:
        thread.join(timeout=30)
    expected = {f"{thread}:{number}:" + "x" * 200 for thread in range(4) for number in range(100)}
    assert set(texts_of(file)) == expected
    assert len(texts_of(file)) == len(expected)


def test_log_without_a_file_keeps_its_lines_for_the_blob(tmp_path: Path) -> None:
    log = Log(tmp_path, WRITER, write_log=False)
    log.warning("kept")
    assert list(tmp_path.iterdir()) == []
    assert b"  kept \n" in log.blob_text()
    assert [(line.level, line.text) for line in log.warnings_and_errors()] == [(Level.WARNING, "kept")]


def test_log_without_a_folder_keeps_its_lines_for_the_blob() -> None:
    log = Log(None, WRITER)
    log.info("kept")
    shell_line(None, "nowhere")
    assert re.fullmatch(rf"{MOMENT}  Info  kept \nTail of shell script log:\n", log.blob_text().decode())


def test_lines_wait_for_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    log = Log(folder, WRITER)
    log.info("one")
    shell_line(folder, "nowhere")
    assert list(tmp_path.iterdir()) == []
    assert b"one" in log.blob_text()
    folder.mkdir()
    log.info("two")
    assert texts_of(folder / "extension.log") == ["one", "two"]


def test_waiting_lines_are_bounded_and_the_newest_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    log = Log(folder, WRITER)
    for number in range(400):
        log.info(f"{number} " + "x" * 8_000)
    folder.mkdir()
    log.info("last")
    file = folder / "extension.log"
    numbers = [int(text.split()[0]) for text in texts_of(file)[:-1]]
    assert numbers == list(range(numbers[0], 400))
    assert 1_900_000 < file.stat().st_size < 2_200_000


def test_half_a_line_on_a_full_disk_is_completed_later(
    log: Log, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:7]))
    log.info("one")
    assert file.stat().st_size == 7
    monkeypatch.undo()
    log.info("two")
    assert texts_of(file) == ["one", "two"]


def test_files_are_for_their_owner_only_whatever_the_umask(log: Log, file: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        log.info("one")
        shell_line(tmp_path, "one")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (file, tmp_path / "shell.log")} == {0o600}


def fill(path: Path, text: str) -> None:
    path.write_text(text + "\n")
    os.truncate(path, log_module.ROTATE_AT_BYTES)


def first_line(path: Path) -> str:
    with path.open() as file:
        return file.readline().rstrip("\n")


@pytest.mark.parametrize("name", ["extension.log", "shell.log"])
def test_full_file_is_rotated_and_three_old_ones_are_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for generation in range(5):
        fill(path, f"generation {generation}")
        Log(tmp_path, WRITER).info("new") if name == "extension.log" else shell_line(tmp_path, "new")
        assert len(lines_of(path)) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, f"{name}.1", f"{name}.2", f"{name}.3"]
    olds = [first_line(tmp_path / f"{name}.{number}") for number in (1, 2, 3)]
    assert olds == ["generation 4", "generation 3", "generation 2"]


def test_file_below_the_size_is_not_rotated(log: Log, file: Path) -> None:
    file.write_bytes(b"")
    os.truncate(file, log_module.ROTATE_AT_BYTES - 1)
    log.info("one")
    assert [path.name for path in file.parent.iterdir()] == ["extension.log"]


def test_file_that_cannot_be_rotated_is_still_written(log: Log, file: Path) -> None:
    fill(file, "full")
    (file.parent / "extension.log.2").write_text("cannot take the place of a directory")
    (file.parent / "extension.log.3/entry").mkdir(parents=True)
    log.info("one")
    assert file.stat().st_size > log_module.ROTATE_AT_BYTES
    assert file.read_text().endswith("]one\n")


def test_file_that_another_process_has_just_rotated_is_not_rotated_again(
    log: Log, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def rotated_meanwhile(descriptor: int, operation: int) -> None:
        file.rename(file.with_name("extension.log.1"))
        file.write_text("of the other process\n")
        flock(descriptor, operation)

    fill(file, "full")
    monkeypatch.setattr(fcntl, "flock", rotated_meanwhile)
    log.info("one")
    assert lines_of(file)[0] == "of the other process"
    assert texts_of(file)[1:] == ["one"]
    assert first_line(file.with_name("extension.log.1")) == "full"


PROCESS = """
import sys
from pathlib import Path
from vmsnapshot.handler import log
log.ROTATE_AT_BYTES = 20_000
own = log.Log(Path(sys.argv[1]), "w-1")
for number in range(150):
    own.info(f"{sys.argv[2]}:{number}:" + "x" * 40)
"""


@pytest.mark.usefixtures("compiled_engine")
def test_two_processes_rotate_once_and_lose_no_line(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, tmp_path, str(number)], stdin=subprocess.DEVNULL)
        for number in range(3)
    ]
    assert [process.wait(timeout=30) for process in processes] == [0, 0, 0]
    # 450 lines of about 80 bytes fill two files of 20 kB. Rotating a file twice would make a third.
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["extension.log", "extension.log.1"]
    texts = [text.rsplit(":", 1)[0] for path in files for text in texts_of(path)]
    assert sorted(texts) == sorted(f"{process}:{number}" for process in range(3) for number in range(150))
