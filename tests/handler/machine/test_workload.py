"""Which database workload.conf names, and why it cannot be held."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmsnapshot import Application, MariaDb, MySql, PostgreSql
from vmsnapshot.handler.machine.workload import Workload, read_workload


def read(tmp_path: Path, **options: str) -> Workload | None:
    path = tmp_path / "workload.conf"
    lines = "".join(f"{name} = {value}\n" for name, value in options.items())
    path.write_text(f"[workload]\n{lines}")
    return read_workload(path)


@pytest.mark.parametrize(
    ("options", "database"),
    [
        ({"workload_name": "mariadb", "linux_user": "root"}, MariaDb()),
        ({"workload_name": "mysql", "linux_user": "dba"}, MySql(linux_user="dba")),
        (
            {
                "workload_name": "mysql",
                "credString": "--login-path=backup -h '/a b'",
                "command_path": "/opt/bin",
            },
            MySql(client_options=("--login-path=backup", "-h", "/a b"), client_directory="/opt/bin"),
        ),
        (
            {"Workload_Name": "postgres", "linux_user": "postgres", "role": "slave"},
            PostgreSql(linux_user="postgres"),
        ),
        ({"workload_name": "postgres", "credString": ""}, PostgreSql()),
    ],
)
def test_database_is_read(tmp_path: Path, options: dict[str, str], database: Application) -> None:
    assert read(tmp_path, **options) == Workload(database)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"role": "primary"}, 502, "invalid role name in config"),
        ({"enforceSlaveOnly": "1"}, 502, "invalid role name in config"),
        ({"dbnames": "a;b"}, 501, "exception in workloadconfig parsing"),
        ({"customScriptEnabled": "1"}, 501, "exception in workloadconfig parsing"),
        ({"credString": "'unclosed"}, 501, "exception in workloadconfig parsing"),
        ({"workload_name": "oracle"}, 503, "Workload Not supported"),
    ],
)
def test_database_that_cannot_be_held_has_a_code(
    tmp_path: Path, changes: dict[str, str], code: int, text: str
) -> None:
    workload = read(tmp_path, **{"workload_name": "mysql", "linux_user": "root", **changes})
    assert workload is not None
    assert workload.problem is not None
    assert (workload.problem.code, workload.problem.text, workload.database) == (code, text, None)
    assert workload.problem.cause


def test_neither_user_nor_credentials_is_a_problem(tmp_path: Path) -> None:
    workload = read(tmp_path, workload_name="mysql")
    assert workload is not None
    assert workload.problem is not None
    assert workload.problem.code == 505


@pytest.mark.parametrize("content", [None, "", "[workload]\n", "[other]\nworkload_name = mysql\n", "no ini"])
def test_file_without_a_workload_names_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "workload.conf"
    if content is not None:
        path.write_text(content)
    assert read_workload(path) is None


@pytest.mark.parametrize(("mode", "owner"), [(0o620, 0), (0o602, 0), (0o600, 7)])
def test_file_that_others_can_change_is_a_problem(
    root: None,  # noqa: ARG001 (files of another user)
    tmp_path: Path,
    mode: int,
    owner: int,
) -> None:
    path = tmp_path / "workload.conf"
    path.write_text("[workload]\nworkload_name = mysql\nlinux_user = root\n")
    path.chmod(mode)
    os.chown(path, owner, 0)
    workload = read_workload(path)
    assert workload is not None
    assert workload.problem is not None
    assert (workload.problem.code, workload.database) == (501, None)


def test_options_without_effect_and_a_password_are_warned_of(tmp_path: Path) -> None:
    workload = read(
        tmp_path, workload_name="mysql", credString="--password=geheim", ipc_folder="/t", timeout="90"
    )
    assert workload is not None
    assert len(workload.warnings) == 3
    assert "geheim" not in repr(workload)
