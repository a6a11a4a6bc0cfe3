"""The tables of docs/documents.md have every key and code of the JSON documents, and no other."""

from __future__ import annotations

import ast
import json

import pytest

from tests.documents import product
from tests.documents.markdown import page

PAGE = page("docs/documents.md")
API = page("docs/python-api.md")
# A section of the page, the name of its outermost table, and the class whose `to_json` it describes.
DOCUMENTS = [
    ("The report", "the report", "Report"),
    ("The plan", "the plan", "Plan"),
    ("The status", "the status", "Status"),
    ("The thaw", "the thaw", "ThawResult"),
]
# A key that no class has as an attribute.
ONLY_IN_JSON = {("Report", "schema_version")}

each_document = pytest.mark.parametrize(("section", "name", "class_name"), DOCUMENTS)


def only_attributes() -> set[tuple[str, str]]:
    """The attributes that are in no document, according to docs/python-api.md."""
    named = API.table("attribute", "Functions").first_codes
    pairs = {(code.partition(".")[0], code.partition(".")[2]) for code in named}
    assert pairs
    return pairs


def parts(name: str, class_name: str) -> list[tuple[str, str, dict[str, ast.expr]]]:
    """The objects of a document, outermost first: for each the name of its table, its class and its keys."""
    keys = {
        key: annotation
        for key, annotation in product.ENGINE.attributes(class_name).items()
        if (class_name, key) not in only_attributes()
    }
    found = [(name, class_name, keys)]
    for key, annotation in keys.items():
        inner = product.ENGINE.class_in(annotation)
        if inner is not None:
            found += parts(f"`{key}`", inner)
    return found


@each_document
def test_every_key_has_a_row_and_no_row_is_without_one(section: str, name: str, class_name: str) -> None:
    found = parts(name, class_name)
    for part, owner, keys in found:
        expected = set(keys) | {key for class_of_key, key in ONLY_IN_JSON if class_of_key == owner}
        named = PAGE.table(f"key of {part}", section).first_codes
        assert sorted(named) == sorted(expected), f"key of {part}"
    tables = [table for table in PAGE.tables if table.section == section and "key of" in table.title]
    assert len(tables) == len(found)


@each_document
def test_every_code_has_a_row_or_is_named_and_no_row_is_without_one(
    section: str, name: str, class_name: str
) -> None:
    for part, _, keys in parts(name, class_name):
        for key, annotation in keys.items():
            codes = product.ENGINE.codes_in(annotation)
            if not codes:
                continue
            tables = PAGE.find_tables(f"`{key}`", section) + PAGE.find_tables(f"`{key}` of {part}", section)
            if tables:
                (table,) = tables
                assert sorted(table.first_codes) == sorted(codes), key
            else:
                rows = PAGE.table(f"key of {part}", section).rows
                (meaning,) = (row[2] for row in rows if row[0].codes == (key,))
                assert codes <= set(meaning.codes), key


def test_there_are_codes_to_check() -> None:
    with_codes = {
        (owner, key)
        for _, name, class_name in DOCUMENTS
        for _, owner, keys in parts(name, class_name)
        for key, annotation in keys.items()
        if product.ENGINE.codes_in(annotation)
    }
    assert with_codes >= {
        ("Report", "consistency"),
        ("Report", "freeze_doubt_code"),
        ("TimelineEvent", "event"),
        ("BlobOutcome", "outcome"),
    }


@pytest.mark.parametrize("class_name", ["BlobOutcome", "HostCallOutcome", "Plan"])
def test_what_is_said_to_be_an_attribute_only_is_one(class_name: str) -> None:
    named = {key for owner, key in only_attributes() if owner == class_name}
    assert named
    assert named <= set(product.ENGINE.attributes(class_name))


def test_the_document_of_an_error_has_these_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert product.main(["plan", "--json", "--no-such-option"]) == 2
    printed = json.loads(capsys.readouterr().out)
    (example,) = (block for block in PAGE.blocks if block.language == "json")
    assert set(printed) == set(json.loads(example.text)) == {"error"}
    keys = PAGE.table("key of `error`", "Errors").first_codes
    assert sorted(keys) == sorted(printed["error"]) == sorted(json.loads(example.text)["error"])


def test_every_kind_of_error_has_a_row() -> None:
    kinds = product.ERRORS.codes_of_name("kind")
    assert kinds, "the exceptions declare no kinds"
    assert set(PAGE.table("`kind`", "Errors").first_codes) == kinds


def test_every_subject_of_a_prepare_error_has_a_row() -> None:
    subjects = product.ERRORS.codes_of_name("subject")
    assert subjects, "the exceptions declare no subjects"
    assert set(API.table("`subject`", "Exceptions").first_codes) == subjects
