"""Properties of what users write by hand: lists of blobs, metadata and command lines.

Every input gives a value or an `ArgumentsError`, never another exception. No message repeats the
input. Well-formed input is read back unchanged.
"""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnapshot.cli.arguments import parse_arguments, parse_metadata
from vmsnapshot.cli.blob_list import parse_blob_list
from vmsnapshot.errors import ArgumentsError

MARK = "c2VjcmV0"

# Characters of a URI. A line that begins with `#` is a comment, and one with `[` or `{` is JSON.
URIS = st.builds(
    lambda rest: f"https://{rest}",
    st.text(alphabet=string.ascii_letters + string.digits + "/?&=%.-_~:#", min_size=1),
)
ANY_BYTES = st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
BLANKS = st.sampled_from(["", " ", "\t", "# a comment", "  # another"])


def outcome(content: bytes) -> list[str] | ArgumentsError:
    try:
        return parse_blob_list(content, "`disks`")
    except ArgumentsError as error:
        return error


@given(ANY_BYTES)
def test_any_content_is_a_list_of_uris_or_an_arguments_error(content: bytes) -> None:
    result = outcome(content)
    if isinstance(result, list):
        assert result
        assert all(uri and uri.isascii() and not any(map(str.isspace, uri)) for uri in result)


@given(
    ANY_BYTES,
    ANY_BYTES,
    st.sampled_from([b"%b", b"\n%b\n", b"[%b]", b'["%b"]', b'{"blobSASUri": ["%b", 1]}']),
)
def test_no_error_repeats_what_was_read(before: bytes, after: bytes, form: bytes) -> None:
    result = outcome(form.replace(b"%b", before + MARK.encode() + after))
    if isinstance(result, ArgumentsError):
        assert MARK not in f"{result} {result.hint} {result.code} {result.__cause__}"


@given(st.lists(st.tuples(URIS, BLANKS), min_size=1), st.sampled_from(["\n", "\r\n"]))
def test_uris_written_as_lines_are_read_back(lines: list[tuple[str, str]], ending: str) -> None:
    text = "".join(f"{uri}{ending}{blank}{ending}" for uri, blank in lines)
    assert outcome(text.encode()) == [uri for uri, _ in lines]


@given(st.lists(URIS, min_size=1), st.booleans(), st.sampled_from([None, 2]))
def test_uris_written_as_json_are_read_back(uris: list[str], named: bool, indent: int | None) -> None:
    document = {"blobSASUri": uris} if named else uris
    assert outcome(json.dumps(document, indent=indent).encode()) == uris


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
VALUES = st.text(alphabet=[chr(code) for code in range(0x20, 0x7F)])


@given(st.dictionaries(NAMES.map(str.lower), VALUES))
def test_metadata_is_read_back_as_it_was_written(metadata: dict[str, str]) -> None:
    assert parse_metadata([f"{name}={value}" for name, value in metadata.items()]) == metadata


@given(st.lists(st.text()), st.text(), st.text())
def test_any_metadata_is_parsed_or_refused_without_repeating_it(
    pairs: list[str], before: str, after: str
) -> None:
    try:
        metadata = parse_metadata([*pairs, before + MARK + after])
    except ArgumentsError as error:
        assert MARK not in f"{error} {error.hint}"
    else:
        assert all(
            name.isascii() and name.isidentifier() and value.isascii() for name, value in metadata.items()
        )


@given(
    st.lists(
        st.text()
        | st.sampled_from(["plan", "snapshot", "--json", "--blob", "--mount", "--thaw-timeout", "--"])
    )
)
def test_any_command_line_is_parsed_or_refused_without_repeating_it(arguments: list[str]) -> None:
    try:
        parse_arguments([*arguments, "https://x/?sig=" + MARK], "0")
    except ArgumentsError as error:
        assert MARK not in f"{error} {error.hint}"
    except SystemExit as end:
        assert end.code == 0, "only --help and --version end here"


@pytest.mark.parametrize("seconds", ["0", "-0", "nan", "inf", "-inf", "3600.0000001", "1e400"])
def test_timeout_out_of_range_is_refused(seconds: str) -> None:
    with pytest.raises(ArgumentsError):
        parse_arguments(["snapshot", "--blobs-from", "-", f"--thaw-timeout={seconds}"], "0")
