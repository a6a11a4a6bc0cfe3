"""A secret is in no text that is made from it, and signatures are removed from other texts."""

from __future__ import annotations

import copy
import pickle
import re
import time
import traceback
import urllib.parse

import pytest

from vmsnapshot.handler.secret import SasUri, Secret, described, redacted

pytestmark = pytest.mark.usefixtures("compiled_engine")

URI = " https://account.blob.core.windows.net/c/b.vhd?sv=2014-02-14&sr=b&sig=AAAA%2BB&sp=rw"
PRINTED = "https://account.blob.core.windows.net/c/b.vhd"


@pytest.mark.parametrize("secret", [Secret("AAAA"), SasUri(URI)])
def test_secret_is_in_no_rendering(secret: Secret) -> None:
    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r}", "%s" % secret, str([secret])):  # noqa: UP031
        assert "AAAA" not in text


def test_secret_is_exposed_to_its_user_only() -> None:
    assert Secret("AAAA").expose() == "AAAA"
    assert SasUri(URI).expose() == URI.strip()
    assert str(SasUri(URI)) == PRINTED


def test_secret_is_not_pickled_or_copied() -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(Secret("AAAA"))


def test_empty_secret_is_false() -> None:
    assert not Secret("")
    assert not SasUri("  ")
    assert SasUri(URI)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"PUT {URI.strip()} failed", f"PUT {PRINTED}?... failed"),
        (f"<a href='{URI.strip()}'>", f"<a href='{PRINTED}?...'>"),
        ("SIG=AAAA&x", "SIG=...&x"),
        ("?sig%3DAAAA", "?sig%3D..."),
        ("why? because", "why? because"),
        ("?a?b=1&sig=AAAA", "?a?..."),
        ("", ""),
    ],
)
def test_signatures_are_taken_out_of_a_text(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://h/c/b&sp=rw&sig=AAAA",
        "http://h/c/b%3Fsp=rw&sig%3DAAAA",
        "http://h/c/b;sig=AAAA?sig=x",
        "http://h/c/b%253Fsp%253Drw%2526sig%253DAAAA",
        "http://h/c/b%25253Fsig%25253DAAAA",
        "http://h/c/b&SIG=AAAA",
        "http://h/c/b%26%53i%47%3dAAAA",
        "http://h/c/b#sig=AAAA",
        "http://h/c/b\\sig=AAAA",
        "http://h/c/b\nsig=AAAA",
        "http://sig=AAAA@h/c/b",
        "http://user:AAAA@h/c/b?sig=AAAA",
        "h/c/b&sig=AAAA",
        "sig=AAAA://h/c/b",
    ],
)
def test_blob_uri_that_lost_its_question_mark_prints_no_signature(text: str) -> None:
    uri = SasUri(text)
    for printed in (uri.without_query, str(uri), repr(uri), f"{uri}"):
        assert "AAAA" not in printed


def test_signature_of_a_blob_uri_is_removed_wherever_it_is_repeated() -> None:
    signature = "Hq3b8+Zt0/1xQv9LmN2pR7sWcY5dFgHjKaEoUiTyB4z="
    percent = urllib.parse.quote(signature, safe="")
    SasUri(f"https://h/c/b?sv=1&sig={percent}&se=2")
    for written in (
        signature,
        percent,
        percent.lower(),
        urllib.parse.quote(percent, safe=""),
        signature.replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\u003d"),
        signature.replace("+", "&#43;").replace("/", "&#x2F;"),
        signature.replace("+", " "),
        signature[:25],
    ):
        text = redacted(f"Signature {written} did not match \udcff")
        # Padding that stays behind tells nothing.
        assert re.fullmatch(r"Signature \.\.\.\S{0,8} did not match \udcff", text), text


def test_short_signature_removes_no_words() -> None:
    SasUri("https://h/c/b?sig=refused")
    assert redacted("the service refused") == "the service refused"


def test_long_text_is_redacted_quickly() -> None:
    begun = time.process_time()
    for part in ("?", "?sv=1", "//", "//a@", "sig=", "%25", "&#", "\\u00"):
        redacted(part * (500_000 // len(part)))
        str(SasUri("http://h/c/" + part * (500_000 // len(part))))
    # An earlier version took minutes, because its time grew with the square of the length.
    assert time.process_time() - begun < 10


def test_unexpected_error_is_described_without_its_text() -> None:
    try:
        int("AAAA")
    except ValueError as error:
        text = described(error)
        assert "AAAA" in "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert text.startswith("ValueError in test_secret.py, line ")
    assert "AAAA" not in text


def test_systems_error_is_described_with_the_systems_words() -> None:
    assert described(FileNotFoundError(2, "No such file or directory", "/AAAA")) == (
        "FileNotFoundError (no such file or directory)"
    )
