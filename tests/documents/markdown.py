"""Parses the repository's Markdown, and gives the tests its anchors, links, tables and code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.filesystems import REPOSITORY


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    """As the source has it."""
    codes: tuple[str, ...]
    """The pieces of code in it, without their backticks, in order."""


@dataclass(frozen=True)
class Table:
    """A table, with the heading of its section."""

    section: str
    line: int
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def title(self) -> str:
        """The text of the first cell, by which tests find a table."""
        return self.header[0].text

    @property
    def first_codes(self) -> list[str]:
        """Every piece of code in the first column."""
        return [code for row in self.rows for code in row[0].codes]

    def column(self, name: str) -> int:
        """The number of the column whose header is `name`."""
        return [cell.text for cell in self.header].index(name)


@dataclass(frozen=True)
class Code:
    """A block of code."""

    language: str
    """The word after the opening fence. Empty if there is no word or no fence."""
    text: str
    line: int
    is_fenced: bool


@dataclass(frozen=True)
class Link:
    """A link to a file of this repository."""

    line: int
    target: str
    path: Path
    """The file that it leads to."""
    anchor: str


@dataclass
class Document:
    """One Markdown file."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[Link] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    blocks: list[Code] = field(default_factory=list)
    inline_code: list[tuple[int, str]] = field(default_factory=list)
    opening: str = ""
    """The paragraph below the title."""

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return str(self.path.relative_to(REPOSITORY))

    def table(self, title: str, section: str | None = None) -> Table:
        """The one table whose first header cell is `title`, below the heading `section` if that is given."""
        found = self.find_tables(title, section)
        assert len(found) == 1, f"{self.name} has {len(found)} tables `{title}` below `{section or 'any'}`"
        return found[0]

    def find_tables(self, title: str, section: str | None = None) -> list[Table]:
        """The tables whose first header cell is `title`."""
        return [table for table in self.tables if table.title == title and section in (None, table.section)]


def documents() -> list[Document]:
    """All documents of the repository."""
    paths = [*sorted(REPOSITORY.glob("*.md")), *sorted(REPOSITORY.glob("docs/**/*.md"))]
    assert len(paths) > 10, f"there are only {len(paths)} documents: did they move?"
    return [document(path) for path in paths]


def page(name: str) -> Document:
    """The document of that path."""
    return document(REPOSITORY / name)


@cache
def document(path: Path) -> Document:
    """Reads one Markdown file."""
    return parse(path, path.read_text())


def parse(path: Path, text: str) -> Document:
    """Reads `text` as the content of `path`."""
    result = Document(path)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings: Counter[str] = Counter()
    section = ""
    for position, token in enumerate(tokens):
        line = (token.map or [0])[0] + 1
        following = tokens[position + 1] if position + 1 < len(tokens) else token
        if token.type == "heading_open":
            section = following.content
            anchor = anchor_of(_plain(following))
            result.anchors.add(f"{anchor}-{headings[anchor]}" if headings[anchor] else anchor)
            headings[anchor] += 1
        elif token.type == "paragraph_open" and not result.opening:
            result.opening = following.content.replace("\n", " ")
        elif token.type in ("fence", "code_block"):
            result.blocks.append(Code(token.info.strip(), token.content, line, token.type == "fence"))
        elif token.type == "table_open":
            result.tables.append(_table(tokens[position:], section, line))
        elif token.type == "inline":
            for child in token.children or []:
                if child.type == "code_inline":
                    result.inline_code.append((line, child.content))
                elif child.type == "link_open":
                    result.links += _link(path, str(child.attrGet("href")), line)
    return result


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _plain(heading: Token) -> str:
    return "".join(child.content for child in heading.children or [])


def _link(source: Path, target: str, line: int) -> Iterator[Link]:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return
    path = source if not parts.path else (source.parent / unquote(parts.path)).resolve()
    yield Link(line, target, path, parts.fragment)


def _table(tokens: Sequence[Token], section: str, line: int) -> Table:
    rows: list[list[Cell]] = []
    for token in tokens:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            codes = [child.content for child in token.children or [] if child.type == "code_inline"]
            rows[-1].append(Cell(token.content, tuple(codes)))
    return Table(section, line, tuple(rows[0]), tuple(map(tuple, rows[1:])))
