"""Tables: aligned and complete in a pipe, cut to the width of a terminal."""

from __future__ import annotations

import io
import os

import pytest

from tests.support.fake_native import FAILED_REPORT, Mode, Report, WatchdogOutcome
from vmsnapshot.cli import readable, streams, tables
from vmsnapshot.cli.tables import Cell, Column, Screen, Tone, render

COLUMNS = [Column("NAME", flexible=True), Column("SIZE", numeric=True), Column("STATE")]


def test_columns_are_aligned_and_lines_end_without_blanks() -> None:
    assert render(COLUMNS, [["/a", "1", "x"], ["/long/name", "100", "y"]], Screen()) == (
        "NAME        SIZE  STATE\n"
        "/a             1  x\n"
        "/long/name   100  y\n"
    )  # fmt: skip


def test_nothing_is_cut_in_a_pipe() -> None:
    name = "/" + "n" * 500
    assert name in render(COLUMNS, [[name, "1", "x"]], Screen(width=None))


def test_flexible_columns_are_cut_in_the_middle_to_fit_a_terminal() -> None:
    name = "https://account.blob.core.windows.net/vhds/a-long-name-of-a-disk-0.vhd"
    lines = render(COLUMNS, [[name, "1", "x"]], Screen(width=40)).splitlines()
    assert max(len(line) for line in lines) <= 40
    assert lines[1].startswith("https://")
    assert "disk-0.vhd  " in lines[1]
    assert "..." in lines[1]


def test_flexible_columns_have_a_minimum_width_on_a_narrow_terminal() -> None:
    lines = render(COLUMNS, [["n" * 100, "1", "x"]], Screen(width=5)).splitlines()
    assert lines[1].split()[0] == "nnnnn...nnnnnn"


def test_wide_characters_count_as_two_columns() -> None:
    lines = render(COLUMNS, [["/数据", "1", "x"], ["/abcd", "1", "x"]], Screen()).splitlines()
    assert lines[1] == "/数据     1  x"
    assert lines[2] == "/abcd     1  x"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in render(COLUMNS, [["\x1b[2J\n", "1", "x"]], Screen(width=80, colour=True)).replace(
        Tone.HEADING.value, ""
    ).replace("\x1b[0m", "")


def test_colour_does_not_shift_columns() -> None:
    rows: list[list[Cell | str]] = [[Cell("bad", Tone.BAD), "1", "x"], ["fine", "1", "x"]]
    painted = render(COLUMNS, rows, Screen(colour=True))
    assert Tone.BAD.value in painted
    for tone in Tone:
        painted = painted.replace(tone.value, "") if tone.value else painted
    assert painted.replace("\x1b[0m", "") == render(COLUMNS, rows, Screen())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # This is not a fixture, because pytest replaces standard output between set-up and test.
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_terminal_has_its_width_and_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    assert Screen.of_standard_output() == Screen(width=72, colour=True)


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen.of_standard_output() == Screen(width=72, colour=False)
    monkeypatch.setenv("NO_COLOR", "")
    assert Screen.of_standard_output().colour, "an empty NO_COLOR counts as not set (no-color.org)"


def test_dumb_terminal_has_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    assert Screen.of_standard_output() == Screen(width=72, colour=False)


def test_pipe_has_neither_width_nor_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert Screen.of_standard_output() == Screen()


def test_closed_standard_output_has_neither_width_nor_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert Screen.of_standard_output() == Screen()
    assert streams.write_out("text") is None


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, "-"), (0.0314, "0.03 ms"), (1.239, "1.24 ms"), (1239.0, "1.24 s")],
)
def test_durations_carry_their_unit(milliseconds: float | None, text: str) -> None:
    assert readable.duration_text(milliseconds) == text


def test_report_says_why_rcu_was_not_expedited_and_who_thawed() -> None:
    report = Report(
        mode=Mode(rcu_expedited=False, rcu_why_not="rcu_normal is set", parallel=False),
        watchdog=WatchdogOutcome(fired="deadline"),
    )
    text = readable.report_text(report, Screen())  # type: ignore[arg-type]  # the stand-in's class
    assert "no expedited RCU (rcu_normal is set), one filesystem after another" in text
    assert "fired: deadline" in text


def test_errors_are_printed_in_full_on_a_narrow_terminal() -> None:
    text = readable.report_text(FAILED_REPORT, Screen(width=40))  # type: ignore[arg-type]
    assert (
        "https://acct.blob.example/vhds/disk0.vhd: SnapshotCountExceeded:"
        " The snapshot count against this blob has been exceeded."
    ) in " ".join(text.split())


def test_characters_that_the_encoding_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(binary, encoding="ascii", write_through=True))
    assert streams.write_out("/données\n") is None
    assert binary.getvalue() == b"/donn\\xe9es\n"


def test_full_disk_under_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert streams.write_out("text") == "no space left on device"


def test_plain_screen_has_no_colour() -> None:
    assert tables.Screen(colour=True).paint("text", Tone.PLAIN) == "text"


def test_sentences_are_folded_on_a_terminal_and_not_in_a_pipe() -> None:
    whole = readable.report_text(FAILED_REPORT, Screen())  # type: ignore[arg-type]
    folded = readable.report_text(FAILED_REPORT, Screen(width=60))  # type: ignore[arg-type]
    first = readable.headline(FAILED_REPORT)  # type: ignore[arg-type]
    assert whole.startswith(first + "\n")
    assert not folded.startswith(first)
    assert " ".join(folded.split("\n\n")[0].split()) == " ".join(first.split())
    window = next(line for line in folded.splitlines() if line.startswith("window"))
    assert len(window) <= 60
