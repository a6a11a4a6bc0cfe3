"""The names that a program decides by: the stub and the compiled module have the same."""

from __future__ import annotations

import ast

import pytest

from tests.documents.markdown import page
from tests.support.filesystems import REPOSITORY
from vmsnapshot import _native


def literals_of_the_stub() -> dict[str, list[str]]:
    """Returns every alias of the stub that is a list of literals."""
    tree = ast.parse((REPOSITORY / "python/vmsnapshot/_native.pyi").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Subscript):
            assert isinstance(node.target, ast.Name)
            names = node.value.slice
            assert isinstance(names, ast.Tuple)
            found[node.target.id] = [ast.literal_eval(name) for name in names.elts]
    return found


STUB = literals_of_the_stub()


def test_stub_has_an_alias_for_every_enum_of_the_engine() -> None:
    assert set(STUB) == set(_native.names())


@pytest.mark.parametrize("alias", STUB)
def test_literals_of_the_stub_are_the_names_of_the_engine(alias: str) -> None:
    assert sorted(STUB[alias]) == sorted(_native.names()[alias])


def test_every_error_of_the_engine_has_its_place_among_the_codes_of_the_extension() -> None:
    # tests/documents compares this table with the handler's, by subject.
    table = page("docs/extension.md").table("`subject`", "Why a job failed")
    documented = {code: row[0].codes[0] for row in table.rows for code in row[2].codes}
    assert documented == _native.error_codes()
