"""How the settings file is read, whatever its content, and how the protected settings are removed from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.handler.settings.settings_of_a_job import PROTECTED, public
from tests.support.protected_settings import settings_file_text
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.envelope import Envelope, read_envelope, scrub, without_protected_settings
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.parser import parse
from vmsnapshot.handler.settings.wire import Job, SettingsError


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "7.settings"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def wrapped(**handler_settings: Any) -> str:
    return json.dumps({"runtimeSettings": [{"handlerSettings": handler_settings}]})


def test_envelope_holds_what_the_agent_wrote(tmp_path: Path) -> None:
    envelope = read_envelope(
        write(
            tmp_path,
            wrapped(publicSettings={"a": 1}, protectedSettings="MIIB", protectedSettingsCertThumbprint="AB"),
        )
    )
    assert envelope == Envelope({"a": 1}, Secret("MIIB"), "AB")


@pytest.mark.parametrize("value", [None, ""])
def test_null_and_empty_settings_are_none(tmp_path: Path, value: Any) -> None:
    content = wrapped(publicSettings=None, protectedSettings=value, protectedSettingsCertThumbprint=value)
    assert read_envelope(write(tmp_path, content)) == Envelope()
    assert read_envelope(write(tmp_path, wrapped())) == Envelope()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"runtimeSettings":',
        b'{"runtimeSettings": []}',
        b'{"runtimeSettings": {}}',
        b'{"runtimeSettings": [1]}',
        b'{"runtimeSettings": [{}]}',
        b'{"runtimeSettings": [{"handlerSettings": null}]}',
        b'{"runtimeSettings": [{"handlerSettings": {"publicSettings": "text"}}]}',
        b'{"runtimeSettings": [{"handlerSettings": {"protectedSettings": {"a": 1}}}]}',
        b"[" * 100_000,
        b'{"runtimeSettings": ' + b"[" * 100_000,
        b'{"runtimeSettings": ' + b"9" * 10_000 + b"}",
    ],
)
def test_content_that_makes_no_sense_is_an_empty_envelope_with_a_problem(
    tmp_path: Path, content: bytes
) -> None:
    envelope = read_envelope(write(tmp_path, content))
    assert (envelope.public, envelope.protected_text, envelope.thumbprint) == ({}, None, None)
    assert envelope.problem
    assert quick_job(envelope) == Job()
    with pytest.raises(SettingsError) as caught:
        parse(envelope, {})
    assert caught.value.code == Code.CERTIFICATE_NOT_FOUND


def test_file_that_is_missing_or_no_file_is_an_empty_envelope_with_a_problem(tmp_path: Path) -> None:
    for path in (tmp_path / "7.settings", tmp_path):
        envelope = read_envelope(path)
        assert envelope.problem
        assert envelope == Envelope(problem=envelope.problem)


def test_only_the_first_element_counts(tmp_path: Path) -> None:
    first, second = ({"handlerSettings": {"publicSettings": {"n": n}}} for n in (1, 2))
    content = json.dumps({"runtimeSettings": [first, second]})
    assert read_envelope(write(tmp_path, content)).public == {"n": 1}
    broken = json.dumps({"runtimeSettings": [{}, second]})
    assert read_envelope(write(tmp_path, broken)).public == {}


def test_problem_with_a_part_is_a_warning_of_a_job_that_goes_on(tmp_path: Path) -> None:
    envelope = read_envelope(write(tmp_path, wrapped(publicSettings=public(), protectedSettings=5)))
    settings = parse(envelope, {})
    assert settings.warnings == (envelope.problem,)


def test_scrub_takes_the_protected_settings_out_and_keeps_everything_else(tmp_path: Path) -> None:
    text = settings_file_text(public(customSettings="{}"), PROTECTED)
    path = write(tmp_path, text)
    assert scrub(path)
    expected = json.loads(text)
    del expected["runtimeSettings"][0]["handlerSettings"]["protectedSettings"]
    assert json.loads(path.read_text()) == expected
    assert "protectedSettingsCertThumbprint" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["7.settings"]


def test_scrub_replaces_the_file_instead_of_writing_into_it(tmp_path: Path) -> None:
    path = write(tmp_path, settings_file_text(public(), PROTECTED))
    with path.open() as before:
        assert scrub(path)
        assert 'protectedSettings"' in before.read()


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"runtimeSettings": [{"handlerSettings": {"protectedSettings": "MII', wrapped(a=1), "[]"],
)
def test_scrub_leaves_alone_what_it_does_not_understand(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    before = path.stat()
    assert scrub(path)
    assert path.read_text() == content
    assert path.stat().st_ino == before.st_ino
    assert without_protected_settings(content) is None


def test_scrub_of_a_missing_file_makes_none(tmp_path: Path) -> None:
    assert scrub(tmp_path / "7.settings")
    assert list(tmp_path.iterdir()) == []


def test_scrub_says_that_it_could_not(tmp_path: Path) -> None:
    # A directory in the place of the file fails for root too, who may write to any file.
    assert not scrub(tmp_path)


def test_scrub_cleans_every_element(tmp_path: Path) -> None:
    element = {"handlerSettings": {"protectedSettings": "MIIB"}}
    path = write(tmp_path, json.dumps({"runtimeSettings": [element, element]}))
    assert scrub(path)
    assert "MIIB" not in path.read_text()
