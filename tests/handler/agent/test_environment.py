"""How the handler reads HandlerEnvironment.json, and which sequence number the job has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vmsnapshot.handler.agent.environment import (
    HandlerEnvironment,
    HandlerEnvironmentError,
    find_base_directory,
    read_environment,
    sequence_number,
)

NAME = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / f"{NAME}-1.0.9184.0"
    directory.mkdir()
    return directory


def document(base: Path) -> dict[str, Any]:
    """The object in the file, with every key that the agent writes."""
    return {
        "name": NAME,
        "version": 1.0,
        "handlerEnvironment": {
            "logFolder": f"/var/log/azure/{NAME}",
            "configFolder": f"{base}/config",
            "statusFolder": f"{base}/status",
            "heartbeatFile": f"{base}/heartbeat.log",
            "eventsFolder": f"/var/log/azure/{NAME}/events",
            "eventsFolder_preview": f"/var/log/azure/{NAME}/events",
        },
    }


def write(base: Path, content: Any) -> None:
    (base / "HandlerEnvironment.json").write_text(json.dumps(content))


def no_pause(_seconds: float) -> None:
    """Replaces the pause between two tries to read the file."""


def read(base: Path) -> HandlerEnvironment:
    return read_environment(base, pause=no_pause)


def test_file_of_the_agent_is_understood(base: Path) -> None:
    write(base, [document(base)])
    environment = read(base)
    assert environment == HandlerEnvironment(
        name=NAME,
        schema_version="1.0",
        log_folder=Path(f"/var/log/azure/{NAME}"),
        config_folder=base / "config",
        status_folder=base / "status",
        events_folder=Path(f"/var/log/azure/{NAME}/events"),
        base_directory=base,
        lib_directory=base.parent,
    )


def test_bare_object_and_unknown_keys_are_fine(base: Path) -> None:
    write(base, [document(base)])
    of_list = read(base)
    write(base, {**document(base), "seqNo": "7", "deploymentid": None})
    assert read(base) == of_list


def test_byte_order_mark_is_passed_over(base: Path) -> None:
    content = json.dumps([document(base)])
    (base / "HandlerEnvironment.json").write_text(content, encoding="utf-8-sig")
    assert read(base).name == NAME


@pytest.mark.parametrize("folder", [None, "", 5])
def test_events_folder_is_optional(base: Path, folder: Any) -> None:
    content = document(base)
    content["handlerEnvironment"]["eventsFolder"] = folder
    write(base, content)
    assert read(base).events_folder is None
    del content["handlerEnvironment"]["eventsFolder"]
    del content["handlerEnvironment"]["heartbeatFile"]
    write(base, content)
    assert read(base).events_folder is None


@pytest.mark.parametrize(
    ("version", "text"), [(1.0, "1.0"), ("1.0", "1.0"), (2.5, "2.5"), (None, "1.0"), (float("nan"), "1.0")]
)
def test_schema_version_is_a_text(base: Path, version: Any, text: str) -> None:
    write(base, {**document(base), "version": version})
    assert read(base).schema_version == text


def test_file_that_is_being_rewritten_is_read_again(base: Path) -> None:
    whole = json.dumps([document(base)])
    path = base / "HandlerEnvironment.json"
    path.write_text("")
    contents = [whole[:40], whole]

    def agent_goes_on_writing(_seconds: float) -> None:
        path.write_text(contents.pop(0))

    environment = read_environment(base, pause=agent_goes_on_writing)
    assert environment.name == NAME
    assert contents == []


def test_waiting_for_a_whole_file_ends_within_a_second(base: Path) -> None:
    (base / "HandlerEnvironment.json").write_text("[{")
    pauses: list[float] = []
    with pytest.raises(HandlerEnvironmentError) as caught:
        read_environment(base, pause=pauses.append)
    assert caught.value.code == "environment-not-json"
    assert 0.5 <= sum(pauses) <= 1.0


def test_missing_file_is_an_error_at_once(base: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(HandlerEnvironmentError) as caught:
        read_environment(base, pause=pauses.append)
    assert caught.value.code == "environment-unreadable"
    assert pauses == []


@pytest.mark.parametrize(
    "content", [b"", b"null", b"\xff", b"[" * 100_000, b"{'name': 1}", b"9" * 10_000 + b"x"]
)
def test_content_that_is_no_json_is_an_error(base: Path, content: bytes) -> None:
    (base / "HandlerEnvironment.json").write_bytes(content)
    with pytest.raises(HandlerEnvironmentError) as caught:
        read(base)
    assert caught.value.code == "environment-not-json"


@pytest.mark.parametrize("content", [[], [[]], 5, {}, [{"name": NAME, "handlerEnvironment": None}]])
def test_json_of_another_shape_is_an_error(base: Path, content: Any) -> None:
    write(base, content)
    with pytest.raises(HandlerEnvironmentError) as caught:
        read(base)
    assert caught.value.code == "environment-incomplete"


@pytest.mark.parametrize("key", ["logFolder", "configFolder", "statusFolder"])
@pytest.mark.parametrize("value", [None, "", 5, "a\0b"])
def test_folder_that_is_missing_is_an_error(base: Path, key: str, value: Any) -> None:
    content = document(base)
    content["handlerEnvironment"][key] = value
    write(base, content)
    with pytest.raises(HandlerEnvironmentError) as caught:
        read(base)
    assert key in str(caught.value)


@pytest.mark.parametrize("name", [None, "", 5])
def test_missing_name_is_an_error(base: Path, name: Any) -> None:
    write(base, {**document(base), "name": name})
    with pytest.raises(HandlerEnvironmentError):
        read(base)


def test_relative_folders_are_below_the_base_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = document(base)
    content["handlerEnvironment"]["configFolder"] = "config"
    write(base, content)
    monkeypatch.chdir(base)
    environment = read(Path())
    assert environment.config_folder == base / "config"
    assert environment.base_directory == base
    assert environment.lib_directory == base.parent


def test_base_directory_is_the_current_one_where_the_file_is_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"AZURE_GUEST_AGENT_EXTENSION_PATH": str(base)}
    monkeypatch.chdir(tmp_path)
    assert find_base_directory(other) == base
    assert find_base_directory({}) == tmp_path
    write(tmp_path, document(tmp_path))
    assert find_base_directory(other) == tmp_path


@pytest.fixture
def environment(base: Path) -> HandlerEnvironment:
    write(base, document(base))
    (base / "config").mkdir()
    return read(base)


def settings_file(environment: HandlerEnvironment, name: str, modified: int) -> None:
    path = environment.config_folder / name
    path.touch()
    os.utime(path, (modified, modified))


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("0", 0), (" 12 ", 12)])
def test_agent_says_the_number(environment: HandlerEnvironment, text: str, number: int) -> None:
    settings_file(environment, "99.settings", 1000)
    assert sequence_number(environment, {"ConfigSequenceNumber": text}) == number


@pytest.mark.parametrize("text", [None, "", "seven", "-1", "7.0", "1_0", "٣", "9" * 5000])
def test_newest_settings_file_counts_where_the_agent_says_none(
    environment: HandlerEnvironment, text: str | None
) -> None:
    settings_file(environment, "99.settings", 1000)
    settings_file(environment, "12.settings", 3000)
    settings_file(environment, "5.settings", 2000)
    settings_file(environment, "name.settings", 4000)
    settings_file(environment, "13_settings", 5000)
    settings_file(environment, "14.status", 6000)
    environ = {} if text is None else {"ConfigSequenceNumber": text}
    assert sequence_number(environment, environ) == 12


def test_highest_number_counts_among_files_of_one_time(environment: HandlerEnvironment) -> None:
    for name in ("9.settings", "10.settings"):
        settings_file(environment, name, 1000)
    assert sequence_number(environment, {}) == 10


def test_settings_file_that_vanishes_meanwhile_does_not_count(environment: HandlerEnvironment) -> None:
    settings_file(environment, "5.settings", 1000)
    # A link to nothing is listed but cannot be opened, like a file that was deleted after the listing.
    (environment.config_folder / "6.settings").symlink_to("gone")
    assert sequence_number(environment, {}) == 5


def test_there_is_no_number_without_settings_files(environment: HandlerEnvironment) -> None:
    assert sequence_number(environment, {}) is None
    environment.config_folder.rmdir()
    assert sequence_number(environment, {}) is None
