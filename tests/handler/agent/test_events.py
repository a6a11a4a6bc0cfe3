"""Warnings and errors are written for the agent as it reads them, and its events folder is not filled up."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vmsnapshot.handler.agent.events import NO_OPERATION, delete_old_events, write_events
from vmsnapshot.handler.log import Level, Line, Log

VERSION = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux-9.9.1"
TASK = "7f0c2a40-0000-0000-0000-000000000001"
WHEN = datetime.datetime(2030, 1, 2, 3, 4, 5, 0, datetime.timezone.utc)
ISO = "2030-01-02T03:04:05.000000"
DAY_SECONDS = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    return folder


def a_line(text: str, level: Level = Level.ERROR) -> Line:
    return Line(WHEN, level, text)


def write(folder: Path | None, *lines: Line, disabled: bool = False) -> bool:
    return write_events(folder, lines, version=VERSION, operation_id=TASK, disabled=disabled)


def written(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.iterdir()
    events = json.loads(file.read_bytes())
    assert isinstance(events, list)
    return events


def messages(folder: Path) -> list[str]:
    return [event["Message"] for event in written(folder)]


def test_event_has_exactly_the_agents_fields_and_all_are_texts(folder: Path) -> None:
    assert write(folder, a_line("did not work"))
    (event,) = written(folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", event.pop("Timestamp"))
    assert event == {
        "Version": VERSION,
        "TaskName": "Enable",
        "EventLevel": "Info",
        "Message": f"{ISO}\t[Error]:\tdid not work \n",
        "EventPid": str(os.getpid()),
        "EventTid": str(threading.get_native_id()),
        "OperationId": TASK,
    }


def test_file_has_a_name_that_the_agent_reads_and_is_for_its_owner_only(folder: Path) -> None:
    before = time.time_ns()
    assert write(folder, a_line("x"))
    (file,) = folder.iterdir()
    assert re.fullmatch(r"\d+\.json", file.name)
    assert before <= int(file.stem) <= time.time_ns()
    assert file.stat().st_mode & 0o777 == 0o600


def test_event_before_the_task_id_is_known_has_the_zero_operation(folder: Path) -> None:
    write_events(folder, [a_line("x")], version=VERSION, operation_id=None)
    assert NO_OPERATION == "00000000-0000-0000-0000-000000000000"
    assert written(folder)[0]["OperationId"] == NO_OPERATION


def test_only_warnings_and_errors_of_a_log_are_written(folder: Path) -> None:
    log = Log(None, "w-1")
    log.info("fine")
    log.warning("odd")
    log.error("bad")
    write(folder, *log.warnings_and_errors())
    (message,) = messages(folder)
    assert [line.split("\t")[1:] for line in message.splitlines()] == [
        ["[Warning]:", "odd "],
        ["[Error]:", "bad "],
    ]


def test_lines_share_a_message_as_far_as_it_holds_them(folder: Path) -> None:
    lines = [a_line(f"{number} " + "x" * 900) for number in range(10)]
    write(folder, *lines)
    texts = messages(folder)
    assert [text.count("\n") for text in texts] == [3, 3, 3, 1]
    assert "".join(texts) == "".join(f"{ISO}\t[Error]:\t{line.text} \n" for line in lines)


def test_long_line_is_written_in_numbered_parts_that_hold_all_of_it(folder: Path) -> None:
    text = "".join(f"{number:05}" for number in range(1_600))
    write(folder, a_line("before"), a_line(text), a_line("after"))
    lines = "".join(messages(folder)).splitlines()
    parts = [re.fullmatch(rf"{re.escape(ISO)} \[(\d)/3\] (.*) ", line) for line in lines[1:-1]]
    assert [part and part[1] for part in parts] == ["1", "2", "3"]
    assert "".join(part[2] for part in parts if part) == f"{ISO}\t[Error]:\t{text}"
    assert lines[0].endswith("before ")
    assert lines[-1].endswith("after ")


@pytest.mark.parametrize("length", [2_870, 2_880, 2_900, 3_000, 3_100, 5_800, 8_192])
def test_no_message_is_longer_than_the_agent_takes(folder: Path, length: int) -> None:
    write(folder, a_line("x" * length), a_line("y"), a_line("z" * length))
    assert max(map(len, messages(folder))) <= 3_000
    assert "".join(messages(folder)).count("x") == length


def test_everything_that_a_log_keeps_fits_into_one_file_that_the_agent_takes(folder: Path) -> None:
    log = Log(None, "w-1")
    for _ in range(1_000):
        log.error("\U0001f512" * 8_000)
    write(folder, *log.warnings_and_errors())
    (file,) = folder.iterdir()
    assert file.stat().st_size < 4_000_000
    assert 1 < len(written(folder)) <= 300


def test_no_more_events_are_written_than_the_agent_takes(folder: Path) -> None:
    write(folder, *(a_line("\U0001f512" * 2_800) for _ in range(400)))
    (file,) = folder.iterdir()
    assert file.stat().st_size < 4_000_000
    assert len(written(folder)) == 300


def test_no_signature_is_in_an_event(folder: Path) -> None:
    write(folder, a_line("https://a.example/b?sv=1&sig=c2VjcmV0"))
    assert "c2VjcmV0" not in messages(folder)[0]


def test_nothing_is_written_without_lines_or_when_disabled(folder: Path) -> None:
    assert not write(folder)
    assert not write(folder, a_line("x"), disabled=True)
    assert not write(None, a_line("x"))
    assert list(folder.iterdir()) == []


def test_missing_folder_is_not_made(tmp_path: Path) -> None:
    assert not write(tmp_path / "events", a_line("x"))
    delete_old_events(tmp_path / "events")
    delete_old_events(None)
    assert list(tmp_path.iterdir()) == []


def test_two_events_at_one_moment_have_two_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_900_000_000_000_000_000)
    assert write(folder, a_line("one"))
    assert write(folder, a_line("two"))
    texts = [json.loads(path.read_text())[0]["Message"] for path in sorted(folder.iterdir())]
    assert [text.split("\t")[2] for text in texts] == ["one \n", "two \n"]


def test_file_of_another_command_that_is_still_writing_is_left_alone(folder: Path) -> None:
    (folder / "Temp").mkdir()
    other = folder / "Temp/1-2"
    other.write_text("half")
    assert write(folder, a_line("x"))
    delete_old_events(folder)
    assert other.read_text() == "half"


def test_full_folder_is_not_written(folder: Path) -> None:
    sparse = folder / "1.json"
    sparse.write_bytes(b"")
    os.truncate(sparse, 39_981_250)
    assert not write(folder, a_line("x"))
    assert list(folder.iterdir()) == [sparse]
    os.truncate(sparse, 39_981_250 - 1_000)
    assert write(folder, a_line("x"))


def test_files_older_than_a_day_are_deleted(folder: Path) -> None:
    (folder / "Temp").mkdir()
    now = time.time()
    for name, age_seconds in [
        ("1.json", DAY_SECONDS + 60),
        ("x.tmp", DAY_SECONDS * 30),
        ("2.json", DAY_SECONDS - 60),
        ("Temp/3-1", DAY_SECONDS + 60),
    ]:
        (folder / name).write_text("[]")
        os.utime(folder / name, (now - age_seconds, now - age_seconds))
    delete_old_events(folder)
    assert [path.name for path in folder.iterdir()] == ["2.json"]


def test_folder_that_the_agent_empties_meanwhile_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    failures: list[Path] = []

    def emptied_first(self: Path, target: Path) -> Path:
        if not failures:
            failures.append(self)
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", emptied_first)
    assert write(folder, a_line("x"))
    assert failures
    assert len(written(folder)) == 1


def test_folder_that_cannot_be_written_costs_less_than_a_second(folder: Path) -> None:
    (folder / "Temp").write_text("a file in the way")
    started = time.monotonic()
    assert not write(folder, a_line("x"))
    assert time.monotonic() - started < 1
    assert [path.name for path in folder.iterdir()] == ["Temp"]
