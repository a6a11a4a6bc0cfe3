"""Reads which database ``workload.conf`` names, and how to connect to it. Contract, chapter 9.1.

The file is the predecessor's. Its database is held by a session of the database's own client (`vmsnapshot`),
and not by SQL files below the agent's directory, so some of its options have no effect.
"""

from __future__ import annotations

import configparser
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot import Application, MariaDb, MySql, PostgreSql
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.files import read_bytes

WORKLOAD_CONFIGURATION = Path("/etc/azure/workload.conf")
# The reference supports these. Any other name means that there is no workload.
WORKLOADS = frozenset({"oracle", "mysql", "mariadb", "postgres"})

_SECTION = "workload"
_WITHOUT_EFFECT = ("ipc_folder", "timeout", "configuration_path")


@dataclass(frozen=True)
class WorkloadProblem:
    """Why the database cannot be held. `text` is the contract's, and `cause` says more."""

    code: Code
    text: str
    cause: str


@dataclass(frozen=True)
class Workload:
    """The database of the VM: one of the two is set."""

    database: Application | None = None
    problem: WorkloadProblem | None = None
    warnings: tuple[str, ...] = ()


def workload_name(path: Path = WORKLOAD_CONFIGURATION) -> str:
    """Returns the ``workload_name`` of workload.conf, supported or not, or "" if it names none.

    Raises:
        OSError: there is a file that cannot be read.
    """
    try:
        text = read_bytes(path, follows_link=True).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "workload_name" and value.strip():
            return value.strip()
    return ""


def read_workload(path: Path = WORKLOAD_CONFIGURATION) -> Workload | None:
    """Returns the database that the file names, or `None` if it names none that the reference supports.

    Never raises: what cannot be used is the workload's problem.
    """
    # No interpolation, because a password file's name may contain `%`.
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(read_bytes(path, follows_link=True).decode("utf-8-sig"))
        options = {name: value.strip() for name, value in parser.items(_SECTION)}
    except (OSError, ValueError, configparser.Error):
        return None
    name = options.get("workload_name", "")
    if name not in WORKLOADS:
        return None
    warnings = tuple(
        f"`{option}` in `{path}` has no effect: the database is held by a session of its client"
        for option in _WITHOUT_EFFECT
        if options.get(option)
    )
    if "password" in options.get("credstring", "").lower():
        warnings += (
            f"`{path}` has a password in credString, which every user can see while the client runs",
        )
    problem = _problem_of_file(path) or _problem_of(name, options)
    if problem is not None:
        return Workload(problem=problem, warnings=warnings)
    try:
        return Workload(_database_of(name, options), warnings=warnings)
    except ValueError as error:
        cause = f"credString cannot be split into options: {str(error).lower()}"
        return Workload(
            problem=WorkloadProblem(
                Code.WORKLOAD_CONFIGURATION, "exception in workloadconfig parsing", cause
            ),
            warnings=warnings,
        )


def _problem_of_file(path: Path) -> WorkloadProblem | None:
    """Returns the problem of a file that others than root can change: it names what root runs."""
    status = path.stat()
    if status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    cause = f"`{path}` does not belong to root, or others can write to it"
    return WorkloadProblem(Code.WORKLOAD_CONFIGURATION, "exception in workloadconfig parsing", cause)


def _problem_of(name: str, options: dict[str, str]) -> WorkloadProblem | None:
    role = options.get("role", "master")
    if "credstring" not in options and "linux_user" not in options:
        cause = "it has neither credString nor linux_user"
        return WorkloadProblem(Code.WORKLOAD_AUTHORIZATION, "Cred and linux user string missing", cause)
    if role not in ("master", "slave"):
        return WorkloadProblem(
            Code.WORKLOAD_ROLE, "invalid role name in config", "role is neither master nor slave"
        )
    if role == "master" and options.get("enforceslaveonly", "0") not in ("", "0"):
        cause = "role is master, and enforceSlaveOnly forbids that"
        return WorkloadProblem(Code.WORKLOAD_ROLE, "invalid role name in config", cause)
    unsupported = {
        "dbnames": "single databases cannot be held (dbnames)",
        "customscriptenabled": "SQL files of the owner are not run (customScriptEnabled)",
    }
    for option, cause in unsupported.items():
        if options.get(option, "0") not in ("", "0"):
            return WorkloadProblem(Code.WORKLOAD_CONFIGURATION, "exception in workloadconfig parsing", cause)
    if name == "oracle":
        cause = "this version cannot hold Oracle still; a pre- and a post-script can"
        return WorkloadProblem(Code.WORKLOAD_NAME, "Workload Not supported", cause)
    return None


def _database_of(name: str, options: dict[str, str]) -> Application:
    linux_user = options.get("linux_user", "")
    client_options = tuple(shlex.split(options.get("credstring", "")))
    directory = options.get("command_path", "")
    if name == "postgres":
        return PostgreSql(
            linux_user="" if linux_user == "root" else linux_user,
            client_options=client_options,
            client_directory=directory,
        )
    of_kind = MySql if name == "mysql" else MariaDb
    return of_kind(
        linux_user="" if linux_user == "root" else linux_user,
        client_options=client_options,
        client_directory=directory,
    )
