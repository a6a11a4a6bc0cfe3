"""Reads the facts about the machine and this extension that every report contains.

All facts are read from files. No program is started and the agent is not called, so that ``enable`` returns
within milliseconds. The facts are informative: no known reader depends on one of them.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from vmsnapshot.handler.files import read_bytes

UNKNOWN = "Unknown"
"""The text of an unknown fact."""

_WORKLOADS = ("mysqld", "postgresql", "oracle", "cassandra", "mongo")
# Enough for the command line of a Java server, whose class comes after a long class path.
_COMMAND_LINE_LIMIT_BYTES = 128 * 1024
_SCAN_LIMIT_SECONDS = 1.0

_AGENT_DIRECTORY = re.compile(r"WALinuxAgent-(\d+(?:\.\d+)*)")
_AGENT_VARIABLE = "_AZURE_GUEST_AGENT_DAEMON_VERSION_"
_VERSION = re.compile(r"\d+(?:\.\d+)*")
_SHELL_ESCAPE = re.compile(r"\\([$\"'`\\])")


def machine_facts(
    base_directory: Path,
    lib_directory: Path,
    environ: Mapping[str, str],
    *,
    pre_post_enabled: bool = False,
    proc: Path = Path("/proc"),
    os_release: Path = Path("/etc/os-release"),
) -> list[tuple[str, str]]:
    """Returns the keys and texts of all facts.

    `base_directory` is that of the extension, and its name ends with the version. `lib_directory` is the
    agent's ``Lib.Dir``. `pre_post_enabled` is whether ``workload.conf`` names a workload.

    Blocking: at most a second, and only if the command line of a process cannot be read at once.
    """
    return [
        ("pythonVersion", ".".join(str(number) for number in sys.version_info[:3])),
        ("platformArchitecture", "64bit" if sys.maxsize > 2**32 else "32bit"),
        ("guestAgentVersion", guest_agent_version(lib_directory, environ)),
        ("extensionVersion", base_directory.name.rpartition("-")[2]),
        ("osVersion", os_version(os_release)),
        ("kernelVersion", os.uname().release),
        ("workloads", str(running_workloads(proc))),
        ("prePostEnabled", str(pre_post_enabled)),
    ]


def guest_agent_version(lib_directory: Path, environ: Mapping[str, str]) -> str:
    """Returns the version of the agent without calling it, which takes a second and can fail.

    The agent runs the newest version that it finds. It has downloaded that to ``Lib.Dir``, or it is the
    installed one, which the environment of its commands names. A download that the agent has given up
    on counts as well.
    """
    versions = [environ.get(_AGENT_VARIABLE, "").strip()]
    with suppress(OSError):
        names = (entry.name for entry in lib_directory.iterdir() if entry.is_dir())
        versions.extend(match[1] for name in names if (match := _AGENT_DIRECTORY.fullmatch(name)))
    return max(
        (version for version in versions if _VERSION.fullmatch(version)), key=_numbers, default=UNKNOWN
    )


def os_version(os_release: Path) -> str:
    """Returns ``<NAME>-<VERSION>`` of os-release(5), or the name alone if there is no version (Arch)."""
    try:
        # Usually a link to /usr/lib/os-release.
        lines = read_bytes(os_release, follows_link=True).decode(errors="replace").splitlines()
    except OSError:
        return UNKNOWN
    fields = {
        name.strip(): _unquote(value.strip()) for name, _, value in (line.partition("=") for line in lines)
    }
    # The defaults are those of os-release(5).
    parts = (fields.get("NAME") or "Linux", fields.get("VERSION") or fields.get("VERSION_ID"))
    return "-".join(part for part in parts if part)


def running_workloads(proc: Path = Path("/proc"), *, limit_seconds: float = _SCAN_LIMIT_SECONDS) -> list[str]:
    """Returns which databases occur in the command line of any other process.

    Blocking: at most `limit_seconds`. Returns what was found until then. A command line lies in the memory of
    its process. If that process hangs in a page fault, the read hangs too.
    """
    found: set[str] = set()
    scan = threading.Thread(target=_scan, args=(proc, found), name="workloads", daemon=True)
    try:
        scan.start()
    except RuntimeError:
        # No thread is to be had. No report may be lost for that.
        return []
    scan.join(limit_seconds)
    return [workload for workload in _WORKLOADS if workload in found]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _unquote(value: str) -> str:
    is_quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return _SHELL_ESCAPE.sub(r"\1", value[1:-1]) if is_quoted else value


def _scan(proc: Path, found: set[str]) -> None:
    for command_line in _command_lines(proc):
        found.update(workload for workload in _WORKLOADS if workload.encode() in command_line)


def _command_lines(proc: Path) -> Iterator[bytes]:
    # Skip this process: its arguments are those of the handler, and may contain the name of a database.
    own = str(os.getpid())
    try:
        with os.scandir(proc) as entries:
            processes = [entry.path for entry in entries if entry.name.isdecimal() and entry.name != own]
    except OSError:
        return
    for process in processes:
        # A process may end at any moment. Its file is then missing or unreadable.
        with suppress(OSError):
            descriptor = os.open(f"{process}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
            try:
                command_line = os.read(descriptor, _COMMAND_LINE_LIMIT_BYTES)
            finally:
                os.close(descriptor)
            yield command_line
