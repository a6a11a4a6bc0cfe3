"""The code in the documents works: Python type-checks, JSON parses, and commands are accepted."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.documents import product
from tests.documents.markdown import Code, Document, documents
from tests.support.filesystems import REPOSITORY

LANGUAGES = {"", "console", "json", "python"}
PROMPTS = ("# ", "$ ")
MYPY_LIMIT_SECONDS = 50


class Block(NamedTuple):
    """A block of code with its file and line."""

    place: str
    code: Code


def blocks(language: str) -> list[Block]:
    """Every block of that language."""
    found = [
        Block(f"{checked.name}:{code.line}", code)
        for checked in documents()
        for code in checked.blocks
        if code.language == language
    ]
    assert found, f"there is no {language} in the documents: is it called something else?"
    return found


def commands() -> list[tuple[str, list[str]]]:
    """Every command of a console block, with its file and line. One line may have several commands."""
    found = [
        (block.place, words)
        for block in blocks("console")
        for line in block.code.text.splitlines()
        if line.startswith(PROMPTS)
        for words in split(line[2:])
    ]
    # Commands may also be in an indented block, which has neither a language nor prompts.
    found += [
        (f"{checked.name}:{code.line}", words)
        for checked in documents()
        for code in checked.blocks
        if not code.is_fenced
        for line in code.text.splitlines()
        if line.startswith(("make ", "vmsnapshot "))
        for words in split(line)
    ]
    return found


def inline_commands(*programs: str) -> list[tuple[str, list[str]]]:
    """Every command of these programs that running text names, with its file and line."""
    return [
        (f"{checked.name}:{line}", split(code)[0])
        for checked in documents()
        for line, code in checked.inline_code
        if code.split(" ")[0] in programs and " " in code
    ]


def split(line: str) -> list[list[str]]:
    """Splits a line of shell into its commands, and each command into its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    result: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            result.append([])
        else:
            result[-1].append(word)
    return [words for words in result if words]


@pytest.mark.parametrize("checked", documents(), ids=lambda checked: checked.name)
def test_a_block_has_a_language_that_is_checked(checked: Document) -> None:
    # A picture has no language. A language that is not in the list would not be checked by any test.
    unknown = [
        f"line {code.line}: {code.language}" for code in checked.blocks if code.language not in LANGUAGES
    ]
    assert unknown == []


def test_python_compiles_and_type_checks(tmp_path: Path) -> None:
    files = []
    for number, block in enumerate(blocks("python")):
        file = tmp_path / f"{re.sub(r'[^a-z]+', '_', block.place.lower())}_{number}.py"
        file.write_text(block.code.text)
        compile(block.code.text, block.place, "exec")
        files.append(str(file))
    finished = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml"), *files],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=MYPY_LIMIT_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_json_parses() -> None:
    for block in blocks("json"):
        json.loads(block.code.text)


def test_every_command_line_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    checked = [(place, words) for place, words in commands() if words[0].rpartition("/")[2] == "vmsnapshot"]
    assert len(checked) >= 3
    for place, words in checked:
        with _named(place), contextlib.suppress(SystemExit):
            product.parse(words[1:])
    capsys.readouterr()


def test_every_command_in_running_text_has_these_options() -> None:
    parsers = product.command_parsers()
    checked = inline_commands("vmsnapshot")
    assert len(checked) > 20
    unknown = []
    for place, words in checked:
        name = words[1] if not words[1].startswith("-") else ""
        options = [
            word.partition("=")[0] for word in words if word.startswith("-") and word not in ("-", "--")
        ]
        if name not in parsers or not set(options) <= set(parsers[name]._option_string_actions):
            unknown.append(f"{place}: {' '.join(words)}")
    assert unknown == []


def test_every_option_in_running_text_is_one_of_the_command() -> None:
    known = {
        option for parser in product.command_parsers().values() for option in parser._option_string_actions
    }
    named = [
        (f"{checked.name}:{line}", code)
        for checked in documents()
        for line, code in checked.inline_code
        if code.startswith("--")
    ]
    assert len(named) > 20
    assert [f"{place}: {code}" for place, code in named if re.split("[ =]", code)[0] not in known] == []


def test_every_target_of_make_exists() -> None:
    targets = product.make_targets()
    checked = [(place, words) for place, words in commands() if words[0] == "make"] + inline_commands("make")
    assert len(checked) > 10
    unknown = [
        f"{place}: {' '.join(words)}"
        for place, words in checked
        if not {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= targets
    ]
    assert unknown == []


def test_every_verb_of_the_handler_exists() -> None:
    checked = inline_commands("bin/handler")
    assert checked
    assert [place for place, words in checked if words[1] not in product.handler_verbs()] == []


def test_every_attribute_of_a_class_in_running_text_exists() -> None:
    named = [
        (f"{checked.name}:{line}", match[1], match[2])
        for checked in documents()
        for line, code in checked.inline_code
        for match in [re.fullmatch(r"([A-Z]\w+)\.(\w+)(?:\(\))?", code)]
        if match is not None and product.ENGINE.members(match[1]) is not None
    ]
    assert len(named) > 5
    unknown = [
        f"{place}: {class_name}.{name}"
        for place, class_name, name in named
        if name not in (product.ENGINE.members(class_name) or ())
    ]
    assert unknown == []


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{place}: {error}") from error
