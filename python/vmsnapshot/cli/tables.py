"""Lays out tables: fitted to the terminal and with a little colour, or as plain aligned text elsewhere.

This module knows nothing about filesystems or blobs. It never cuts text in a pipe, so that `grep` and `awk`
see whole names.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from vmsnapshot.cli.streams import is_terminal, printable

GAP = "  "
NARROWEST_FLEXIBLE = 14
ELLIPSIS = "..."


class Tone(Enum):
    """What a text means to the reader. The value is the terminal's escape code."""

    PLAIN = ""
    GOOD = "\x1b[32m"
    DOUBTFUL = "\x1b[33m"
    BAD = "\x1b[1;31m"
    HEADING = "\x1b[1m"


@dataclass(frozen=True)
class Screen:
    """Where a table is printed. `width` is in columns or `None`; `colour` is whether colour may be used."""

    width: int | None = None
    colour: bool = False

    @classmethod
    def of_standard_output(cls) -> Screen:
        """Describes standard output. Colour needs a terminal that is not ``dumb``, and no ``NO_COLOR``."""
        if sys.stdout is None or not is_terminal("stdout"):
            return cls()
        colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        return cls(width=shutil.get_terminal_size().columns, colour=colour)

    def fold(self, line: str, indent: str = "") -> str:
        """Breaks a line between words to fit the terminal. `indent` begins each further line."""
        if self.width is None:
            return line
        return textwrap.fill(
            line, self.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )

    def paint(self, text: str, tone: Tone) -> str:
        """Gives `text` the colour of `tone`, if colour may be used."""
        return f"{tone.value}{text}\x1b[0m" if self.colour and tone is not Tone.PLAIN else text


@dataclass(frozen=True)
class Column:
    """One column. The text of a flexible column is cut in the middle if the terminal is too narrow."""

    title: str
    flexible: bool = False
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    tone: Tone = Tone.PLAIN


def render(columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], screen: Screen) -> str:
    """Lays out a table below a line of titles. Each line ends with a line feed and has no trailing blanks."""
    cells = [[_cell(field) for field in row] for row in rows]
    widths = _fit(columns, cells, screen)
    titles = [Cell(column.title, Tone.HEADING) for column in columns]
    return "".join(_line(columns, row, widths, screen) for row in [titles, *cells])


def display_width(text: str) -> int:
    """Returns how many columns `text` takes on a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _cell(field: Cell | str) -> Cell:
    cell = field if isinstance(field, Cell) else Cell(field)
    return Cell(printable(cell.text), cell.tone)


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], screen: Screen) -> list[int]:
    widths = [
        max(display_width(text) for text in (column.title, *(row[index].text for row in rows)))
        for index, column in enumerate(columns)
    ]
    if screen.width is None:
        return widths
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - screen.width
    while excess > 0:
        # Shorten the widest column first, so that two long columns become equally wide.
        index = max(
            (index for index, column in enumerate(columns) if column.flexible),
            key=lambda index: widths[index],
            default=None,
        )
        if index is None or widths[index] <= NARROWEST_FLEXIBLE:
            return widths
        widths[index] -= 1
        excess -= 1
    return widths


def _line(columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int], screen: Screen) -> str:
    line = ""
    for column, cell, width in zip(columns, row, widths):
        text = _cut(cell.text, width)
        blanks = " " * (width - display_width(text))
        painted = screen.paint(text, cell.tone)
        line += (blanks + painted if column.numeric else painted + blanks) + GAP
    return line.rstrip(" ") + "\n"


def _cut(text: str, width: int) -> str:
    if display_width(text) <= width:
        return text
    # The two ends distinguish blobs and mount points better than the middle.
    room = width - len(ELLIPSIS)
    head, tail = "", ""
    for character in text:
        if display_width(head + character) > room // 2:
            break
        head += character
    for character in reversed(text):
        if display_width(head) + display_width(character + tail) > room:
            break
        tail = character + tail
    return head + ELLIPSIS + tail
