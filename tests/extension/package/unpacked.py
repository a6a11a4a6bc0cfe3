"""The extension package as the Azure Linux agent unpacks it, and its commands as the agent runs them.

Two parts are replaced. The main module is a stand-in that records how it was started. A test can
also set the only directory in which the entry script searches for Pythons.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

NAME = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"

_STAND_IN = """
import json, os, pathlib, sys

def main(arguments):
    import vmsnapshot.handler.codes
    seen = {
        "arguments": arguments,
        "executable": sys.executable,
        "isolated": sys.flags.isolated,
        "no_site": sys.flags.no_site,
        "utf8_mode": sys.flags.utf8_mode,
        "directory": os.getcwd(),
        "standard_input": os.path.realpath("/proc/self/fd/0"),
        "path": sys.path,
    }
    with pathlib.Path("ran").open("a") as ran:
        ran.write(json.dumps(seen) + "\\n")
    return 7
"""


@dataclass(frozen=True)
class Answer:
    """The exit status and the output of a command."""

    exit_status: int
    output: str
    errors: str


class Unpacked:
    """An unpacked package in its own directory, with the settings of sequence number 7."""

    def __init__(self, package: Path, parent: Path, *, with_third_parties: bool) -> None:
        self._package = package
        self._with_third_parties = with_third_parties
        self.directory = parent / f"{NAME}-0.1.0"
        self.logs = parent / "logs"
        self.statuses = self.directory / "status"
        self.unpack()
        for directory in (self.logs, self.statuses, self.directory / "config"):
            directory.mkdir(mode=0o700)
        self.write_environment([self.environment()])
        self.write_settings(7)
        (self.directory / "lib/vmsnapshot/handler/__main__.py").write_text(_STAND_IN)

    def unpack(self) -> None:
        """Unpacks as the agent does: without modes, and with every file executable by its owner."""
        with zipfile.ZipFile(self._package) as package:
            names = package.namelist()
            if not self._with_third_parties:
                names = [name for name in names if not name.startswith("lib/") or "/vmsnapshot/" in name]
            package.extractall(self.directory, names)
        for path in self.directory.rglob("*"):
            if path.is_file():
                path.chmod(path.stat().st_mode | 0o100)

    def environment(self) -> dict[str, Any]:
        """Returns the only element of HandlerEnvironment.json."""
        return {
            "name": NAME,
            "version": 1.0,
            "handlerEnvironment": {
                "logFolder": str(self.logs),
                "configFolder": str(self.directory / "config"),
                "statusFolder": str(self.statuses),
                "heartbeatFile": str(self.directory / "heartbeat.log"),
            },
        }

    def write_environment(self, document: object) -> None:
        """Writes HandlerEnvironment.json."""
        (self.directory / "HandlerEnvironment.json").write_text(json.dumps(document))

    def write_settings(self, sequence: int) -> None:
        """Writes the settings of a job."""
        public = {"taskId": f"task_{sequence}", "commandStartTimeUTCTicks": "638827848000000000"}
        handler_settings = {"publicSettings": public, "protectedSettings": None}
        settings = {"runtimeSettings": [{"handlerSettings": handler_settings}]}
        (self.directory / f"config/{sequence}.settings").write_text(json.dumps(settings))

    def search_only(self, directory: Path) -> None:
        """Makes the entry script search for Pythons in ``directory`` only."""
        self._replace_line("search=", f"search={directory}")

    def spoil_module(self) -> None:
        """Replaces our compiled module by one that cannot be loaded."""
        (self.directory / "lib/vmsnapshot/_native.abi3.so").write_bytes(b"\x7fELF")

    def run(
        self,
        verb: str,
        variables: Mapping[str, str] = MappingProxyType({}),
        *,
        shell: str = "/bin/sh",
        umask: int = 0o022,
    ) -> Answer:
        """Runs a command with closed standard input, in an environment of PATH and ``variables``."""
        ran = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" <&-', "-", shell, str(self.directory / "bin/handler"), verb],
            env={"PATH": os.defpath, **variables},
            cwd=self.directory,
            capture_output=True,
            text=True,
            umask=umask,
            timeout=50,
            start_new_session=True,
        )
        return Answer(ran.returncode, ran.stdout, ran.stderr)

    def runs(self) -> list[dict[str, Any]]:
        """Returns how the stand-in was started, each time."""
        ran = self.directory / "ran"
        return [json.loads(line) for line in ran.read_text().splitlines()] if ran.exists() else []

    def shell_log(self) -> list[str]:
        """Returns the lines of shell.log."""
        log = self.logs / "shell.log"
        return log.read_text().splitlines() if log.exists() else []

    def _replace_line(self, begins: str, by: str) -> None:
        script = self.directory / "bin/handler"
        lines = script.read_text().splitlines()
        (at,) = [number for number, line in enumerate(lines) if line.startswith(begins)]
        lines[at] = by
        script.write_text("\n".join(lines) + "\n")


def add_python(directory: Path, name: str = "python3") -> Path:
    """Puts a working Python into ``directory``: the one that runs the tests."""
    return add_program(directory, name, f'exec {sys.executable} "$@"')


def add_program(directory: Path, name: str, script: str) -> Path:
    """Puts a shell script into ``directory``."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program
