"""Which configuration of the scripts counts, and whether it wants a freeze."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmsnapshot import Scripts
from vmsnapshot.handler.machine.scripts import ScriptConfiguration, read_script_configuration

NO_FREEZE = json.dumps({"fsFreezeEnabled": False})


@pytest.fixture
def host(root: None, tmp_path: Path) -> Path:  # noqa: ARG001 (files of root)
    """The path of the plugin host's configuration. There is no file yet."""
    return tmp_path / "PluginHost.conf"


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    return tmp_path / "scripts.json"


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)


def host_text(path: Path | str, *, count: int = 1, name: str = "ScriptRunner") -> str:
    plugin = f"pluginName0 = {name}\npluginPath0 = /etc/azure\npluginConfigPath0 = {path}\n"
    return f"[pre_post]\ntimeoutInSeconds = 1800\nnumberOfPlugins = {count}\n{plugin}"


def test_usual_machine_has_neither_file(host: Path, scripts: Path) -> None:
    assert read_script_configuration(host, scripts) == ScriptConfiguration()


@pytest.mark.parametrize(
    ("wish", "is_wanted"),
    [(False, False), (True, True), ("false", False), ("true", True), (None, True), (0, False)],
)
def test_wish_not_to_freeze_is_read(host: Path, scripts: Path, wish: object, is_wanted: bool) -> None:
    write(scripts, json.dumps({"fsFreezeEnabled": wish}))
    configuration = read_script_configuration(host, scripts)
    assert (configuration.path, configuration.wants_freeze) == (scripts, is_wanted)


def test_without_the_key_a_freeze_is_wanted(host: Path, scripts: Path) -> None:
    write(scripts, "{}")
    configuration = read_script_configuration(host, scripts)
    assert (configuration.path, configuration.wants_freeze) == (scripts, True)
    assert (configuration.scripts, configuration.problem) == (None, None)
    assert "names no preScriptLocation" in configuration.warnings[0]


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o200])
def test_file_that_only_root_can_read_counts(host: Path, scripts: Path, mode: int) -> None:
    write(scripts, NO_FREEZE, mode)
    assert not read_script_configuration(host, scripts).wants_freeze


@pytest.mark.parametrize("mode", [0o700, 0o640, 0o604, 0o4600])
def test_file_with_other_permissions_is_ignored_and_named(host: Path, scripts: Path, mode: int) -> None:
    write(scripts, NO_FREEZE, mode)
    assert_ignored(host, scripts, scripts, f"its permissions are {mode:o}; change them to 600")


def test_file_of_another_user_is_ignored_and_named(host: Path, scripts: Path) -> None:
    write(scripts, NO_FREEZE)
    os.chown(scripts, 7, 0)
    assert_ignored(host, scripts, scripts, "it belongs to user 7")


@pytest.mark.parametrize("content", ["", "[]", "{", b"{\xff}", b" " * 2_000_000])
def test_file_that_is_no_object_is_ignored_and_named(host: Path, scripts: Path, content: str | bytes) -> None:
    write(scripts, content)
    assert_ignored(host, scripts, scripts, "it is not a ")


def test_what_is_not_a_file_is_ignored_and_named(host: Path, scripts: Path) -> None:
    os.mkfifo(scripts, 0o600)
    assert_ignored(host, scripts, scripts, "it is not a regular file")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o744])
def test_plugin_host_names_the_script_configuration(
    host: Path, scripts: Path, tmp_path: Path, mode: int
) -> None:
    other = tmp_path / "100%.json"
    write(host, host_text(other), mode)
    write(other, NO_FREEZE)
    configuration = read_script_configuration(host, scripts)
    assert (configuration.path, configuration.wants_freeze) == (other, False)


def test_runner_is_found_behind_another_plugin(host: Path, scripts: Path) -> None:
    text = host_text("/nowhere", count=2, name="Other")
    write(host, text + f"pluginName1 = ScriptRunner\npluginConfigPath1 = {scripts}\n")
    write(scripts, NO_FREEZE)
    assert not read_script_configuration(host, scripts).wants_freeze


@pytest.mark.parametrize(
    "text", ["[pre_post]\n", "[other]\n", "", host_text("/x", count=0), host_text("/x", name="Other")]
)
def test_plugin_host_without_the_runner_means_no_scripts(host: Path, scripts: Path, text: str) -> None:
    write(host, text)
    write(scripts, NO_FREEZE)
    assert read_script_configuration(host, scripts) == ScriptConfiguration()


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("no ini", 0o600, "it is not INI"),
        ("[pre_post]\nnumberOfPlugins = many\n", 0o600, "it is not INI"),
        ("[pre_post]\nnumberOfPlugins = 1\n", 0o600, "it is not INI"),
        (host_text("/x"), 0o666, "its permissions are 666"),
        (host_text("/x"), 0o645, "its permissions are 645"),
    ],
)
def test_plugin_host_that_cannot_be_used_is_ignored_and_named(
    host: Path, scripts: Path, text: str, mode: int, words: str
) -> None:
    write(host, text, mode)
    write(scripts, NO_FREEZE)
    assert_ignored(host, scripts, host, words)


@pytest.mark.parametrize("path", ["", "relative", "/a\0b", "/dev/null/x"])
def test_path_that_names_no_file_is_no_error(host: Path, scripts: Path, path: str) -> None:
    write(host, host_text(path))
    assert read_script_configuration(host, scripts).wants_freeze


def assert_ignored(host: Path, scripts: Path, ignored: Path, words: str) -> None:
    """Checks that everything is frozen, and that a warning names the file and says why it is ignored."""
    configuration = read_script_configuration(host, scripts)
    assert (configuration.path, configuration.wants_freeze) == (None, True)
    (warning,) = configuration.warnings
    assert warning.startswith(f"`{ignored}` is ignored: ")
    assert words in warning


@pytest.fixture
def both(tmp_path: Path) -> dict[str, str]:
    """Both scripts, as the configuration names them."""
    for name in ("pre", "post"):
        write(tmp_path / name, "exit 0\n")
    return {f"{name}ScriptLocation": str(tmp_path / name) for name in ("pre", "post")}


def test_scripts_are_read_with_their_values(host: Path, scripts: Path, both: dict[str, str]) -> None:
    values = {
        "pluginName": "Mine",
        "preScriptParams": ["", "a b", 7, True],
        "preScriptNoOfRetries": 2,
        "timeoutInSeconds": 30,
        "continueBackupOnFailure": False,
        "appName": "x",
        "ScriptsExecutionPollTimeSeconds": 3,
    }
    write(scripts, json.dumps({**both, **values}))
    configuration = read_script_configuration(host, scripts)
    assert configuration == ScriptConfiguration(
        scripts,
        plugin_name="Mine",
        continues_on_failure=False,
        scripts=Scripts(
            name="Mine",
            required=True,
            wait_seconds=30.0,
            release_seconds=30.0,
            before=both["preScriptLocation"],
            before_arguments=("", "a b", "7", "true"),
            before_tries=3,
            after=both["postScriptLocation"],
        ),
    )


@pytest.mark.parametrize(
    ("values", "expected", "words"),
    [
        ({"timeoutInSeconds": "30"}, {"wait_seconds": 10.0}, "timeoutInSeconds is not a number above 0"),
        ({"timeoutInSeconds": -1}, {"wait_seconds": 10.0}, "timeoutInSeconds is not a number above 0"),
        ({"timeoutInSeconds": 90000}, {"wait_seconds": 1800.0}, None),
        ({"preScriptNoOfRetries": -1}, {"before_tries": 1}, "preScriptNoOfRetries is not a number"),
        ({"postScriptNoOfRetries": "2"}, {"after_tries": 1}, "postScriptNoOfRetries is not a number"),
        ({"postScriptParams": "a"}, {"after_arguments": ()}, "postScriptParams is not a list"),
        ({"preScriptParam": []}, {}, "there is no option `preScriptParam`"),
    ],
)
def test_value_that_cannot_be_used_is_named_and_the_usual_one_counts(
    host: Path,
    scripts: Path,
    both: dict[str, str],
    values: dict[str, object],
    expected: dict[str, object],
    words: str | None,
) -> None:
    write(scripts, json.dumps({**both, **values}))
    configuration = read_script_configuration(host, scripts)
    assert configuration.scripts is not None
    for name, value in expected.items():
        assert getattr(configuration.scripts, name) == value
    if words is None:
        assert configuration.warnings == ()
    else:
        assert words in configuration.warnings[0]


def test_plugin_host_limits_the_time_of_the_scripts(host: Path, scripts: Path, both: dict[str, str]) -> None:
    write(host, host_text(scripts).replace("1800", "20"))
    write(scripts, json.dumps({**both, "timeoutInSeconds": 60}))
    configuration = read_script_configuration(host, scripts)
    assert configuration.scripts is not None
    assert configuration.scripts.wait_seconds == 20.0


@pytest.mark.parametrize(("name", "codes"), [("pre", (302, 306)), ("post", (303, 307))])
def test_script_that_cannot_be_run_has_a_code(
    host: Path, scripts: Path, both: dict[str, str], name: str, codes: tuple[int, int]
) -> None:
    write(scripts, json.dumps(both))
    script = Path(both[f"{name}ScriptLocation"])
    script.chmod(0o640)
    assert read_script_configuration(host, scripts).problem == codes[1]
    script.unlink()
    assert read_script_configuration(host, scripts).problem == codes[0]
    script.mkdir()
    configuration = read_script_configuration(host, scripts)
    assert (configuration.problem, configuration.scripts) == (codes[0], None)
    assert configuration.are_configured
