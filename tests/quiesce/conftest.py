"""Fixtures of the engine's tests, and a hook that writes down what it is told."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import disk, machine, the_engine_is_compiled

__all__ = ["disk", "machine", "the_engine_is_compiled"]

# It writes nothing to a file between `quiesced` and `released`, so its diary may be on any filesystem.
_HOOK = """\
import json, os, sys, time
diary, *faults = sys.argv[1:]
events = []
def note(word):
    events.append([word, time.monotonic_ns()])
def say(word):
    fault = next((fault for fault in faults if fault.startswith(word + "=")), None)
    if fault == word + "=hang":
        time.sleep(60)
    elif fault == word + "=exit":
        sys.exit(3)
    print(word if fault is None else fault.partition("=")[2], flush=True)
    note(word)
note("started")
say("ready")
for word in ("quiesce", "released"):
    line = sys.stdin.readline()
    note(line.strip() or "end")
    if word == "quiesce" and line:
        say("quiesced")
with open(diary, "a") as file:
    json.dump(events, file)
    file.write("\\n")
sys.exit(3 if "released=exit" in faults else 0)
"""


class HookDiary:
    """A hook with given faults (``WORD=hang``, ``WORD=exit``, ``WORD=TEXT``), and what it was told."""

    def __init__(self, directory: Path, name: str, *faults: str) -> None:
        self._path = directory / f"{name}.diary"
        self.program = directory / name
        source = directory / f"{name}.py"
        source.write_text(_HOOK)
        words = " ".join(f"'{word}'" for word in (sys.executable, str(source), str(self._path), *faults))
        self.program.write_text(f"#!/bin/sh\nexec {words}\n")
        self.program.chmod(0o755)

    def option(self, *values: str) -> str:
        """Returns the option of the command line that names this hook."""
        return ",".join((f"--quiesce=hook:{self.program}", *values))

    def lives(self, limit_seconds: float = 5.0) -> list[list[tuple[str, int]]]:
        """Waits until the hook has ended. Returns its events and their instants, for each time it ran."""
        until = time.monotonic() + limit_seconds
        while not (self._path.exists() and self._path.read_text().endswith("\n")):
            assert time.monotonic() < until, "the hook did not end"
            time.sleep(0.01)
        return [[tuple(event) for event in json.loads(line)] for line in self._path.read_text().splitlines()]

    def words(self) -> list[str]:
        """Returns the words of its only life."""
        (life,) = self.lives()
        return [word for word, _ in life]

    def has_ended(self) -> bool:
        """Returns whether it wrote its diary."""
        return self._path.exists()


@pytest.fixture
def root_directory(tmp_path: Path, root: None) -> Path:  # noqa: ARG001 (requested for its effect)
    """Returns a directory for programs of root."""
    return tmp_path


def keeper_of(run_pid: int) -> int:
    """Returns the process id of a run's keeper."""
    for pid in children_of(run_pid):
        if "keeper_process" in command_of(pid):
            return pid
    raise AssertionError(f"run {run_pid} has no keeper")


def children_of(pid: int) -> list[int]:
    """Returns the children of a process's main thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    """Returns the command line of a process, or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def application_of(report: Any) -> Any:
    """Returns the only application of a report."""
    (application,) = report["applications"]
    return application
