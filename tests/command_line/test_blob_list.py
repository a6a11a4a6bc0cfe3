"""The file of ``--blobs-from``: its forms, and errors that name the place without repeating the content."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.support.fake_native import SIGNATURE, sas_uri
from vmsnapshot.cli.blob_list import LIST_LIMIT_BYTES, parse_blob_list, read_blob_list
from vmsnapshot.errors import ArgumentsError


def test_blank_lines_and_comments_are_skipped() -> None:
    text = f"\ufeff# disks\r\n\r\n  {sas_uri(0)}  \r\n#{sas_uri(1)}\r\n{sas_uri(2)}"
    assert parse_blob_list(text.encode(), "`disks`") == [sas_uri(0), sas_uri(2)]


@pytest.mark.parametrize("form", ['["%s", "%s"]', ' {"blobSASUri": ["%s", "%s"], "backupMetadata": []}'])
def test_json_forms_are_accepted(form: str) -> None:
    assert parse_blob_list((form % (sas_uri(0), sas_uri(1))).encode(), "`disks`") == [sas_uri(0), sas_uri(1)]


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (b"", "blob-list-empty", "is empty"),
        (b"# nothing\n\n", "blob-list-empty", "is empty"),
        (b"[]", "blob-list-empty", "is empty"),
        (f"{sas_uri()}\n{sas_uri()} {SIGNATURE}".encode(), "blob-list-malformed", "line 2 "),
        (f"\n{SIGNATURE}\xe9".encode(), "blob-list-malformed", "line 2 "),
        (f"a\nb\n{SIGNATURE}".encode() + b"\xff", "blob-list-malformed", "line 3 "),
        (f'[\n"{SIGNATURE}",\n{SIGNATURE}]'.encode(), "blob-list-malformed", "line 3 "),
        (f'["a", {{"{SIGNATURE}": 1}}]'.encode(), "blob-list-malformed", "entry 2 "),
        (f'["{SIGNATURE}\\ud800"]'.encode(), "blob-list-malformed", "entry 1 "),
        (f'["{SIGNATURE}", ""]'.encode(), "blob-list-malformed", "entry 2 "),
        (f'{{"blobs": ["{SIGNATURE}"]}}'.encode(), "blob-list-malformed", "`blobSASUri`"),
        (b"[" * 100_000, "blob-list-malformed", "JSON"),
        (b"[" + b"1" * 100_000 + b"]", "blob-list-malformed", "is not"),
    ],
)
def test_malformed_list_names_the_place_and_not_the_content(content: bytes, code: str, part: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse_blob_list(content, "`disks`")
    assert caught.value.code == code
    assert part in str(caught.value)
    assert SIGNATURE not in str(caught.value) + str(caught.value.hint)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["missing", ".", "nul\0"])
def test_error_names_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError) as caught:
        read_blob_list(f"{tmp_path}/{name}")
    assert caught.value.code == "blob-list-unreadable"
    assert str(tmp_path) in str(caught.value)


def test_endless_file_is_refused() -> None:
    with pytest.raises(ArgumentsError) as caught:
        read_blob_list("/dev/zero")
    assert caught.value.code == "blob-list-too-long"
    assert str(LIST_LIMIT_BYTES) in str(caught.value)


def test_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sas_uri().encode())))
    assert read_blob_list("-") == [sas_uri()]


def test_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ArgumentsError) as caught:
        read_blob_list("-")
    assert caught.value.code == "blob-list-unreadable"
