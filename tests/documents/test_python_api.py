"""The tables of docs/python-api.md have every function, argument, phase and exception, and no other."""

from __future__ import annotations

import pytest

from tests.documents import product
from tests.documents.markdown import page

PAGE = page("docs/python-api.md")

# The section of a table, the name of its first column, and the function whose arguments it lists.
ARGUMENTS = [
    ("Arguments of `prepare`", "argument", "prepare"),
    ("A host call", "argument", "HostCall.__new__"),
    ("The machine", "argument of `Machine.plan`", "Machine.plan"),
]


def test_every_function_has_a_row() -> None:
    named = [code.partition("(")[0] for code in PAGE.table("function", "Functions").first_codes]
    functions = [name for name in product.exported_names() if name[0].islower()]
    assert sorted(named) == sorted(functions)


@pytest.mark.parametrize(("section", "title", "function"), ARGUMENTS)
def test_every_argument_has_a_row_with_its_default(section: str, title: str, function: str) -> None:
    table = PAGE.table(title, section)
    arguments = product.ENGINE.arguments(function)
    assert table.first_codes == list(arguments)
    if "default" in [cell.text for cell in table.header]:
        for row, (_, default) in zip(table.rows, arguments.values()):
            named = row[table.column("default")].codes
            assert [code.replace('"', "'") for code in named] == ([] if default is None else [default]), row[
                0
            ]


@pytest.mark.parametrize("class_name", ["Mount", "BlockDevice"])
def test_every_attribute_has_a_row(class_name: str) -> None:
    named = PAGE.table(f"attribute of `{class_name}`", "The machine").first_codes
    assert sorted(named) == sorted(product.ENGINE.attributes(class_name))


def test_every_phase_has_a_row() -> None:
    annotation, _ = product.ENGINE.arguments("prepare")["progress"]
    assert annotation is not None
    phases = product.ENGINE.codes_in(annotation)
    assert phases, "the stub names no phases"
    assert sorted(PAGE.table("phase", "Phases").first_codes) == sorted(phases)


def test_every_exception_has_a_row() -> None:
    assert sorted(PAGE.table("exception", "Exceptions").first_codes) == product.exceptions()
