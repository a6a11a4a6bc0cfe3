"""The tables of docs/command-line.md have every option with its unit, range and default, and no other row."""

from __future__ import annotations

import argparse
import re

import pytest

from tests.documents import product
from tests.documents.markdown import Cell, Table, page

PAGE = page("docs/command-line.md")
COMMON = PAGE.table("option", "Options of every command")
OF_COMMAND = {
    "plan": PAGE.table("option", "Options of `plan`"),
    "snapshot": PAGE.table("option", "Options of `snapshot`"),
    "freeze": PAGE.table("option", "A command in the window"),
    "quiesce": PAGE.table("option", "Options of `quiesce`"),
}
PARSERS = {name: parser for name, parser in product.command_parsers().items() if name}
# The arguments without which the command is not accepted.
REQUIRED = {"snapshot": ["--blobs-from", "disks"], "freeze": ["true"], "quiesce": ["check", "hook:/a"]}

each_command = pytest.mark.parametrize("name", PARSERS)


def documented(name: str) -> dict[str, tuple[Table, tuple[Cell, ...]]]:
    """The rows of a command's options, by option."""
    tables = [COMMON, *([OF_COMMAND[name]] if name in OF_COMMAND else [])]
    rows = {row[0].codes[0].split(" ")[0]: (table, row) for table in tables for row in table.rows}
    assert len(rows) == sum(len(table.rows) for table in tables), "an option has two rows"
    return rows


def options(name: str) -> dict[str, argparse.Action]:
    """The options of a command, by their long names."""
    return {action.option_strings[-1]: action for action in PARSERS[name]._actions if action.option_strings}


def test_every_command_has_a_row() -> None:
    named = PAGE.table("command", "Commands").first_codes
    assert named == [f"vmsnapshot {name}" for name in PARSERS]


@each_command
def test_every_option_has_a_row_and_no_row_is_without_one(name: str) -> None:
    assert set(documented(name)) == set(options(name))


@each_command
def test_the_value_of_an_option_is_called_as_in_the_help(name: str) -> None:
    for option, (_, row) in documented(name).items():
        action = options(name)[option]
        value = row[0].codes[0].partition(" ")[2]
        assert value == ("" if action.nargs == 0 else action.metavar), option


@each_command
def test_a_default_is_the_parsers(name: str) -> None:
    for option, (table, row) in documented(name).items():
        default = row[table.column("default")].text
        action = options(name)[option]
        if isinstance(action.default, float):
            assert default == f"{action.default:g}", option
        elif isinstance(action.default, bool):
            # Whether the option was given; `--no-expedite-rcu` stores the opposite.
            assert default == "off", option
        else:
            # The option has no default value. The cell is empty, or says in words what happens without it.
            assert action.default in (None, [], argparse.SUPPRESS), option
            assert default != "off" and not re.search(r"\d", default), option


@each_command
def test_a_length_of_time_has_its_unit_and_range(name: str) -> None:
    for option, (table, row) in documented(name).items():
        unit, limits = (
            ("", "")
            if table not in (OF_COMMAND["snapshot"], OF_COMMAND["freeze"])
            else (row[1].text, row[2].text)
        )
        is_time = options(name)[option].metavar == "SECONDS"
        assert (unit == "seconds", bool(limits)) == (is_time, is_time), option
        if is_time:
            for value, is_accepted in _trials(limits):
                assert _accepts(name, option, value) == is_accepted, (option, value)


def test_there_are_lengths_of_time_to_check() -> None:
    assert sum(action.metavar == "SECONDS" for action in options("snapshot").values()) == 5


def test_the_exit_statuses_are_those_of_the_commands() -> None:
    table = PAGE.table("status", "Exit statuses")
    assert [cell.codes for cell in table.header[1:]] == [(name,) for name in PARSERS]


def _trials(limits: str) -> list[tuple[float, bool]]:
    """Values at and beyond both ends of a range, and whether each is in it."""
    within = re.fullmatch(r"(above )?([\d.]+)(?:,? up)? to ([\d.]+)", limits)
    assert within is not None, limits
    least, most = float(within[2]), float(within[3])
    return [(least, not within[1]), (least / 2 if least else -1.0, False), (most, True), (most + 1, False)]


def _accepts(name: str, option: str, value: float) -> bool:
    try:
        product.parse([name, *REQUIRED.get(name, []), f"{option}={value}"])
    except product.ArgumentsError:
        return False
    return True
