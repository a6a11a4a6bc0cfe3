"""How the agent's commands start: which Python runs them, and the error status if none fits."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.extension.package.unpacked import NAME, Unpacked, add_program, add_python

SHELLS = [path for path in map(shutil.which, ("dash", "bash", "ksh", "zsh")) if path]
JOB_7 = {"ConfigSequenceNumber": "7"}
TOO_OLD = 'case "$*" in *check.py) echo "Python 3.6 is too old" >&2; exit 1 ;; esac; echo ran >>"$0.ran"'


@pytest.fixture
def pythons(unpacked: Unpacked, tmp_path: Path) -> Path:
    """Makes an empty directory, the only one in which the entry script searches for Pythons."""
    directory = tmp_path / "pythons"
    directory.mkdir()
    unpacked.search_only(directory)
    return directory


def read_status(unpacked: Unpacked, sequence: int = 7) -> dict[str, Any]:
    """Reads a status by the rules of the agent. Returns the ``status`` of its only element."""
    assert [path.name for path in unpacked.statuses.iterdir()] == [f"{sequence}.status"]
    text = (unpacked.statuses / f"{sequence}.status").read_text(encoding="ascii")
    assert len(text) < 131072
    (document,) = json.loads(text)
    datetime.datetime.strptime(document["timestampUTC"], "%Y-%m-%dT%H:%M:%SZ")
    status: dict[str, Any] = document["status"]
    assert status["status"] in ("transitioning", "warning", "error", "success")
    assert {"lang", "message"} == status["formattedMessage"].keys()
    for substatus in status["substatus"]:
        assert substatus["status"] in ("transitioning", "warning", "error", "success")
        assert isinstance(substatus["name"], str)
    return status


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
@pytest.mark.parametrize("shell", SHELLS)
def test_command_runs_once_in_the_base_directory_with_only_a_path(
    unpacked: Unpacked, shell: str, umask: int
) -> None:
    answer = unpacked.run("enable", {"TMPDIR": "/nonexistent"}, shell=shell, umask=umask)
    assert (answer.exit_status, answer.output, answer.errors) == (7, "", "")
    (run,) = unpacked.runs()
    assert run["arguments"] == ["enable"]
    assert run["directory"] == str(unpacked.directory)
    assert run["standard_input"] == "/dev/null"


def test_system_python_runs_the_command_if_the_path_is_empty(unpacked: Unpacked) -> None:
    assert unpacked.run("enable", {"PATH": ""}).exit_status == 7


def test_environment_and_packages_of_the_system_have_no_effect(unpacked: Unpacked, tmp_path: Path) -> None:
    (tmp_path / "vmsnapshot.py").write_text("raise SystemExit(99)")
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "LC_ALL": "C"}
    answer = unpacked.run("enable", variables)
    assert answer.exit_status == 7
    (run,) = unpacked.runs()
    assert (run["isolated"], run["no_site"], run["utf8_mode"]) == (1, 1, 1)
    assert run["path"][0] == str(unpacked.directory / "lib")
    assert not [entry for entry in run["path"] if entry.endswith(("site-packages", "dist-packages"))]


def test_failed_command_is_not_run_again_by_another_python(unpacked: Unpacked, pythons: Path) -> None:
    for name in ("python3", "python3.9", "python3.98"):
        add_python(pythons, name)
    assert unpacked.run("enable").exit_status == 7
    assert len(unpacked.runs()) == 1


@pytest.mark.parametrize(("verb", "writes"), [("install", True), ("enable", False), ("worker", False)])
def test_only_install_writes_bytecode(unpacked: Unpacked, verb: str, writes: bool) -> None:
    assert unpacked.run(verb).exit_status == 7
    assert bool(list(unpacked.directory.rglob("*.pyc"))) is writes


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_root_can_write_to_the_bytecode_whatever_the_umask_is(unpacked: Unpacked, umask: int) -> None:
    assert unpacked.run("install", umask=umask).exit_status == 7
    made = [path for path in unpacked.directory.rglob("*") if "__pycache__" in path.parts]
    assert made
    assert {path.stat().st_mode & 0o022 for path in made} == {0}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o755}


def test_newest_python_runs_the_command_if_python3_is_too_old(unpacked: Unpacked, pythons: Path) -> None:
    add_program(pythons, "python3", TOO_OLD)
    for name in ("python3.9", "python3.99", "python3.10", "python3.100-config", "python3.100t"):
        add_program(pythons, name, f'echo {name} >>"{pythons}/started"; exec {sys.executable} "$@"')
    assert unpacked.run("enable").exit_status == 7
    assert (pythons / "started").read_text().split() == ["python3.99", "python3.99"]
    assert not (pythons / "python3.ran").exists()
    (line,) = unpacked.shell_log()
    assert f"enable: running with {pythons}/python3.99" in line
    assert "Python 3.6 is too old" in line


def test_versions_are_compared_as_numbers(unpacked: Unpacked, pythons: Path) -> None:
    add_program(pythons, "python3.9", TOO_OLD)
    add_program(pythons, "python3.10", TOO_OLD)
    assert unpacked.run("disable").exit_status == 0
    (line,) = unpacked.shell_log()
    assert line.index("python3.10 (") < line.index("python3.9 (")


def test_platform_python_runs_the_command_if_there_is_no_other(unpacked: Unpacked, pythons: Path) -> None:
    add_python(pythons, "platform-python")
    assert unpacked.run("enable").exit_status == 7


def test_directories_are_searched_in_the_order_of_the_path(unpacked: Unpacked, tmp_path: Path) -> None:
    python = add_python(tmp_path / "first")
    add_python(tmp_path / "second")
    path = f"{tmp_path}/first:{tmp_path}/second"
    assert unpacked.run("enable", {"PATH": path}).exit_status == 7
    (line,) = unpacked.shell_log()
    assert line.endswith(f"running with {python}")


def test_relative_entries_of_the_path_are_not_searched(unpacked: Unpacked) -> None:
    add_program(unpacked.directory / "here", "python3", "exit 0")
    assert unpacked.run("enable", {"PATH": f"here:.:{os.defpath}"}).exit_status == 7


def test_program_that_is_not_python_is_refused(unpacked: Unpacked, pythons: Path) -> None:
    add_program(pythons, "python3", "exit 5")
    add_program(pythons, "python3.12", "kill -SEGV $$")
    (pythons / "python3.14").mkdir()
    (pythons / "python3.13").write_text("not executable")
    answer = unpacked.run("enable")
    assert answer.exit_status == 3
    assert f"{pythons}/python3 (exit status 5), {pythons}/python3.12 (" in answer.errors
    assert "python3.13" not in answer.errors
    assert "python3.14" not in answer.errors


def test_several_links_to_one_python_are_tried_once(unpacked: Unpacked, pythons: Path) -> None:
    add_program(pythons, "python3.9", f'echo tried >>"{pythons}/tries"; exit 1')
    (pythons / "python3").symlink_to("python3.9")
    (pythons / "platform-python").symlink_to("python3")
    assert unpacked.run("enable").exit_status == 3
    assert (pythons / "tries").read_text().split() == ["tried"]


@pytest.mark.parametrize("shell", SHELLS)
def test_enable_without_a_python_leaves_an_error_status(
    unpacked: Unpacked, pythons: Path, shell: str
) -> None:
    add_program(pythons, "python3", TOO_OLD)
    answer = unpacked.run("enable", {"ConfigSequenceNumber": "7", "TMPDIR": "/nonexistent"}, shell=shell)
    assert answer.exit_status == 3
    assert f"{pythons}/python3 (Python 3.6 is too old)" in answer.errors
    assert unpacked.runs() == []

    status = read_status(unpacked)
    assert (status["name"], status["operation"]) == (NAME, "Enable")
    assert (status["status"], status["code"], status["taskId"]) == ("error", "2", "task_7")
    assert status["commandStartTimeUTCTicks"] == "638827848000000000"
    message = json.loads(status["formattedMessage"]["message"])
    assert f"{pythons}/python3 (Python 3.6 is too old)" in message["messageStr"]

    # The report that Azure Backup reads is inside. It is the same except for five keys.
    (substatus,) = status["substatus"]
    assert substatus["name"].count(r"\/Date(") == 1
    (report,) = json.loads(substatus["name"])
    health = report["status"].pop("vmHealthInfo")
    telemetry = report["status"].pop("telemetryData")
    assert health == {"vmHealthState": 0, "vmHealthStatusCode": 2}
    assert telemetry == [{"Value": "error", "Key": "extErrorCode"}]
    assert report["status"].pop("substatus") == []
    milliseconds = int(report["timestampUTC"][len("/Date(") : -len(")/")])
    assert abs(milliseconds / 1000 - datetime.datetime.now().timestamp()) < 60
    for key in ("vmHealthInfo", "telemetryData", "substatus"):
        del status[key]
    assert report["status"] == status


def test_enable_without_any_python_names_where_it_searched(unpacked: Unpacked, pythons: Path) -> None:
    answer = unpacked.run("enable", JOB_7)
    assert answer.exit_status == 3
    assert str(pythons) in answer.errors
    assert str(pythons) in read_status(unpacked)["formattedMessage"]["message"]


def test_status_names_the_cause_if_the_module_cannot_be_loaded(unpacked: Unpacked) -> None:
    unpacked.spoil_module()
    assert unpacked.run("enable", JOB_7).exit_status == 3
    message = read_status(unpacked)["formattedMessage"]["message"]
    assert "ImportError: " in message
    assert "_native.abi3.so" in message


@pytest.mark.parametrize("variables", [{}, {"ConfigSequenceNumber": ""}, {"ConfigSequenceNumber": "x"}])
def test_status_without_a_sequence_number_is_that_of_the_newest_settings(
    unpacked: Unpacked, pythons: Path, variables: dict[str, str]
) -> None:
    unpacked.write_settings(6)
    os.utime(unpacked.directory / "config/7.settings", (1000, 1000))
    (unpacked.directory / "config/x.settings").touch()
    assert not list(pythons.iterdir())
    assert unpacked.run("enable", variables).exit_status == 3
    assert read_status(unpacked, 6)["taskId"] == "task_6"


def test_status_without_settings_has_nulls(unpacked: Unpacked, pythons: Path) -> None:
    assert not list(pythons.iterdir())
    assert unpacked.run("enable", {"ConfigSequenceNumber": "9"}).exit_status == 3
    status = read_status(unpacked, 9)
    assert (status["taskId"], status["commandStartTimeUTCTicks"]) == (None, None)


def test_environment_may_be_a_bare_object(unpacked: Unpacked, pythons: Path, tmp_path: Path) -> None:
    assert not list(pythons.iterdir())
    environment = unpacked.environment()
    environment["handlerEnvironment"]["statusFolder"] = str(tmp_path / "elsewhere")
    (unpacked.directory / "HandlerEnvironment.json").write_text(json.dumps(environment, indent=2))
    assert unpacked.run("enable", JOB_7).exit_status == 3
    assert (tmp_path / "elsewhere/7.status").exists()


@pytest.mark.parametrize("content", [None, "", '[{"name": "'])
def test_status_without_an_environment_is_in_the_usual_folder(
    unpacked: Unpacked, pythons: Path, content: str | None
) -> None:
    assert not list(pythons.iterdir())
    environment = unpacked.directory / "HandlerEnvironment.json"
    environment.unlink()
    if content is not None:
        environment.write_text(content)
    assert unpacked.run("enable", JOB_7).exit_status == 3
    assert read_status(unpacked)["name"] == NAME


def test_status_of_a_finished_job_is_left_alone(unpacked: Unpacked, pythons: Path) -> None:
    assert not list(pythons.iterdir())
    (unpacked.directory / "mrseq").write_text("7")
    (unpacked.statuses / "7.status").write_text("the outcome")
    assert unpacked.run("enable", JOB_7).exit_status == 3
    assert (unpacked.statuses / "7.status").read_text() == "the outcome"
    (unpacked.directory / "mrseq").write_text("6")
    assert unpacked.run("enable", JOB_7).exit_status == 3
    assert read_status(unpacked)["code"] == "2"


@pytest.mark.parametrize(
    ("verb", "exit_status"), [("install", 3), ("disable", 0), ("uninstall", 0), ("update", 0)]
)
def test_other_commands_without_a_python_print_an_error_and_write_no_status(
    unpacked: Unpacked, pythons: Path, verb: str, exit_status: int
) -> None:
    assert not list(pythons.iterdir())
    answer = unpacked.run(verb, JOB_7)
    assert answer.exit_status == exit_status
    assert len(answer.errors.splitlines()) == 1
    assert "no usable Python 3.9" in answer.errors
    assert list(unpacked.statuses.iterdir()) == []


def test_each_command_has_a_line_in_the_shell_log(unpacked: Unpacked) -> None:
    for verb in ("install", "enable", "disable"):
        unpacked.run(verb)
    assert [line.split()[1] for line in unpacked.shell_log()] == ["install:", "enable:", "disable:"]


def test_shell_log_is_rotated(unpacked: Unpacked) -> None:
    (unpacked.logs / "shell.log").write_bytes(b"x" * 2**20 + b"\n")
    unpacked.run("enable")
    assert len(unpacked.shell_log()) == 1
    assert (unpacked.logs / "shell.log.1").stat().st_size == 2**20 + 1


def test_missing_log_folder_does_not_stop_a_command(unpacked: Unpacked) -> None:
    unpacked.logs.rmdir()
    answer = unpacked.run("enable")
    assert (answer.exit_status, answer.errors) == (7, "")


def test_missing_verb_is_a_usage_error(unpacked: Unpacked) -> None:
    answer = unpacked.run("")
    assert answer.exit_status == 2
    assert "usage: " in answer.errors
