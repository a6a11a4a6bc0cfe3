"""The tables of docs/extension.md have every option and command of the extension, and no other."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest

from tests.documents import product
from tests.documents.markdown import page

PAGE = page("docs/extension.md")
SECTION = "SnapshotThread"
OPTIONS = PAGE.table("option", "`/etc/azure/vmbackup.conf`")
WITHOUT_EFFECT = PAGE.table("section", "`/etc/azure/vmbackup.conf`")
# For the options whose row names only the default: another value.
ANOTHER = {"timeout": "5", "MountsToSkip": "/data, xfs"}


def read(path: Path, *options: tuple[str, str, str]) -> product.VmBackupConfiguration:
    """Reads a file with these options. Each is a section, a name and a value."""
    path.write_text("".join(f"[{section}]\n{name} = {value}\n" for section, name, value in options))
    return product.read_vmbackup_configuration(path)


def without_effect() -> list[tuple[str, str]]:
    """The options that are documented to have no effect, with their sections."""
    return [(row[0].codes[0], option) for row in WITHOUT_EFFECT.rows for option in row[1].codes]


def test_every_option_that_is_read_has_a_row_and_no_row_is_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set()
    original = configparser.ConfigParser.get

    def get(self: configparser.ConfigParser, section: str, option: str, **rest: Any) -> Any:
        asked.add((section, option))
        return original(self, section, option, **rest)

    monkeypatch.setattr(configparser.ConfigParser, "get", get)
    read(tmp_path / "conf")
    named = [(SECTION, option) for option in OPTIONS.first_codes] + without_effect()
    assert len(named) == len(set(named)), "an option has two rows"
    assert asked == set(named)


@pytest.mark.parametrize("row", OPTIONS.rows, ids=lambda row: row[0].codes[0])
def test_a_default_is_what_holds_without_the_option(tmp_path: Path, row: Any) -> None:
    for default in row[OPTIONS.column("default")].codes:
        assert read(tmp_path / "conf", (SECTION, row[0].codes[0], default)) == read(tmp_path / "conf")


def test_there_are_defaults_to_check() -> None:
    assert sum(bool(row[OPTIONS.column("default")].codes) for row in OPTIONS.rows) == 8


@pytest.mark.parametrize("row", OPTIONS.rows, ids=lambda row: row[0].codes[0])
def test_another_value_that_the_row_names_has_an_effect_and_no_warning(tmp_path: Path, row: Any) -> None:
    name = row[0].codes[0]
    defaults = row[OPTIONS.column("default")].codes
    meaning = row[OPTIONS.column("meaning")].text
    # Code in the meaning is a value if a colon follows it. For SnapshotMethod all code is a value.
    named = [
        code
        for code in row[OPTIONS.column("meaning")].codes
        if f"`{code}`:" in meaning or name == "SnapshotMethod"
    ]
    values = [ANOTHER[name]] if name in ANOTHER else [value for value in named if value not in defaults]
    assert values, "the row names no value but the default"
    for value in values:
        configuration = read(tmp_path / "conf", (SECTION, name, value))
        assert configuration != read(tmp_path / "conf"), value
        assert configuration.warnings == (), value


def test_the_range_of_the_timeout_is_the_readers(tmp_path: Path) -> None:
    (row,) = (row for row in OPTIONS.rows if row[0].codes == ("timeout",))
    assert "0.01 to 3600" in row[OPTIONS.column("meaning")].text
    for value, is_accepted in (("0.01", True), ("3600", True), ("0.009", False), ("3601", False)):
        assert (read(tmp_path / "conf", (SECTION, "timeout", value)).warnings == ()) == is_accepted, value


@pytest.mark.parametrize(("section", "option"), without_effect())
def test_an_option_without_effect_is_accepted_and_the_log_says_so(
    tmp_path: Path, section: str, option: str
) -> None:
    configuration = read(tmp_path / "conf", (section, option, "True"))
    (warning,) = configuration.warnings
    assert option in warning
    assert "no effect" in warning


def test_every_command_of_the_agent_has_a_row() -> None:
    assert set(PAGE.table("command", "Commands").first_codes) == product.handler_verbs() - {"status", "thaw"}


def test_every_failure_of_the_engine_has_a_code_and_a_row() -> None:
    codes = product.codes_of_failures()
    subjects = PAGE.table("`subject`", "Why a job failed")
    assert {row[0].codes[0]: row[1].text for row in subjects.rows} == codes.by_subject
    assert sorted(subjects.first_codes) == sorted(product.ENGINE.codes_of_alias("ErrorSubject"))
    documented = [code for row in subjects.rows for code in row[2].codes]
    assert len(documented) == len(set(documented)), "an error has two places"
    assert set(documented) == product.ENGINE.codes_of_alias("ErrorCode")
    doubts = PAGE.table("`freeze_doubt_code`", "Why a job failed")
    assert {row[0].codes[0]: (row[1].text, row[2].text) for row in doubts.rows} == codes.by_doubt
    assert sorted(doubts.first_codes) == sorted(product.ENGINE.codes_of_alias("FreezeDoubt"))
