"""Checks of every document: its links work, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents.markdown import Document, anchor_of, document, documents, page, parse
from tests.support.filesystems import REPOSITORY

README_LINES = 160
COLUMNS = 100
# Only these must be wrapped at 100 columns. The other documents are for developers.
PAGES_FOR_USERS = [
    REPOSITORY / "README.md",
    REPOSITORY / "SECURITY.md",
    *sorted(REPOSITORY.glob("docs/*.md")),
]
# What a build leaves below a directory of the repository.
GENERATED = {"node_modules", "target", "dist", "__pycache__"}

every_document = pytest.mark.parametrize("checked", documents(), ids=lambda checked: checked.name)


@every_document
def test_every_link_leads_to_a_file_and_a_heading(checked: Document) -> None:
    broken = [
        f"line {link.line}: {link.target}"
        for link in checked.links
        if not link.path.exists()
        or (link.anchor and (link.path.suffix != ".md" or link.anchor not in document(link.path).anchors))
    ]
    assert broken == []


def test_the_documents_have_links_to_check() -> None:
    assert sum(len(checked.links) for checked in documents()) > 30
    assert sum(bool(link.anchor) for checked in documents() for link in checked.links) > 10


def test_anchors_are_those_of_github() -> None:
    text = (
        "# A `run`\n\n# Root's own accidents\n\n# `/etc/azure/vmbackup.conf`\n\n# A `run`\n\n# Still there?\n"
    )
    assert parse(Path("any.md"), text).anchors == {
        "a-run",
        "roots-own-accidents",
        "etcazurevmbackupconf",
        "a-run-1",
        "still-there",
    }
    assert anchor_of("Where status and logs appear") == "where-status-and-logs-appear"


@every_document
def test_every_path_of_the_repository_that_is_named_exists(checked: Document) -> None:
    missing = [
        f"line {line}: {code}"
        for line, code in checked.inline_code
        if _is_path_of_repository(code) and not _is_there(code, checked.path.parent)
    ]
    assert missing == []


def test_paths_of_the_repository_are_told_from_others() -> None:
    for path in (
        "rust/core",
        "tests/no/such",
        "docs/no.md",
        "no/such/file.py",
        "requirements-dev.in",
        ".ci/run",
    ):
        assert _is_path_of_repository(path), path
    for other in (
        "/run/vmsnapshot",
        "type=ext4",
        "core::frames",
        "bin/handler",
        "tests/azurite/node_modules",
    ):
        assert not _is_path_of_repository(other), other
    assert not _is_there("docs/no.md", REPOSITORY)
    assert _is_there("documents.md", REPOSITORY / "docs")


@pytest.mark.parametrize("path", PAGES_FOR_USERS, ids=lambda path: path.name)
def test_prose_and_code_are_wrapped_at_100_columns(path: Path) -> None:
    long = [
        f"line {number}: {len(line)} columns"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        # A row of a table has to be on one line.
        if len(line) > COLUMNS and not line.startswith("|")
    ]
    assert long == []


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("docs/*.md")), ids=lambda path: path.name)
def test_a_page_opens_with_one_sentence_that_says_who_needs_it(path: Path) -> None:
    opening = document(path).opening
    assert opening.startswith("This page is for ")
    assert re.findall(r"[.!?](?:\s|$)", opening) == ["."]


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readme_leads_to_every_page() -> None:
    pages = {path.resolve() for path in [*REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("*.md")]}
    # The changes are for those who have an older version, and SECURITY.md leads to them.
    pages -= {REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"}
    assert pages <= {link.path for link in page("README.md").links}


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    run_by_ci = re.findall(r"^make \w+$", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)
    named = "\n".join(block.text for block in page("README.md").blocks if block.language == "console")
    assert len(run_by_ci) == 2
    assert [
        command for command in run_by_ci if not re.search(rf"^[#$] {command}\b", named, re.MULTILINE)
    ] == []


def _is_path_of_repository(code: str) -> bool:
    if not re.fullmatch(r"[\w.@+-]+(/[\w.@+-]+)*/?", code) or GENERATED & set(code.split("/")):
        return False
    first, slash, _ = code.partition("/")
    if not slash:
        return first == "Makefile" or Path(code).suffix in (".md", ".toml", ".lock", ".in", ".txt")
    is_tracked = first == ".ci" or not first.startswith(".")
    is_source = Path(code).suffix in (".py", ".pyi", ".rs", ".md", ".toml")
    return is_source or (is_tracked and (REPOSITORY / first).is_dir())


def _is_there(code: str, directory: Path) -> bool:
    return (REPOSITORY / code).exists() or (directory / code).exists()
