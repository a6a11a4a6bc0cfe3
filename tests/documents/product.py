"""The parts of the product that the documents are compared with. If a module moves, only this file changes.

It needs neither root nor a network. Where the engine is not compiled, it imports the stand-in.
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple

from tests.documents.stub import Stub
from tests.support import fake_native
from tests.support.filesystems import REPOSITORY

fake_native.make_importable()

import vmsnapshot  # noqa: E402  (needs an engine, real or not)
from vmsnapshot import cli  # noqa: E402
from vmsnapshot.cli import arguments  # noqa: E402
from vmsnapshot.errors import ArgumentsError  # noqa: E402
from vmsnapshot.handler.codes import Code  # noqa: E402
from vmsnapshot.handler.freeze import attempts  # noqa: E402
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration, read_vmbackup_configuration  # noqa: E402
from vmsnapshot.handler.report.outcome import Attempt, FreezeResult, outcome_of  # noqa: E402
from vmsnapshot.handler.report.outcome import Path as Taker  # noqa: E402
from vmsnapshot.handler.report.snapshots import SnapshotItem  # noqa: E402

__all__ = [
    "ENGINE",
    "ERRORS",
    "ArgumentsError",
    "VmBackupConfiguration",
    "codes_of_failures",
    "command_parsers",
    "exceptions",
    "exported_names",
    "handler_verbs",
    "main",
    "make_targets",
    "parse",
    "read_vmbackup_configuration",
]

ENGINE = Stub(REPOSITORY / "python/vmsnapshot/_native.pyi")
ERRORS = Stub(REPOSITORY / "python/vmsnapshot/errors.py", aliases_of=ENGINE)

main = cli.main


def parse(words: list[str]) -> argparse.Namespace:
    """Parses a command line. Raises `ArgumentsError` if it is wrong."""
    return arguments.parse_arguments(words, "0")


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and that of ``vmsnapshot`` itself as ``""``."""
    parser = arguments._parser("0")
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {"": parser, **commands.choices}


def exported_names() -> list[str]:
    """The names that ``vmsnapshot`` exports."""
    return list(vmsnapshot.__all__)


def exceptions() -> list[str]:
    """The exceptions that ``vmsnapshot`` exports."""
    exported = {name: getattr(vmsnapshot, name) for name in exported_names()}
    return sorted(
        name for name, value in exported.items() if isinstance(value, type) and issubclass(value, Exception)
    )


class FailureCodes(NamedTuple):
    """The run codes of the extension for every failure of the engine, as text."""

    by_subject: dict[str, str]
    by_doubt: dict[str, tuple[str, str]]
    """If no request was sent, and if some were."""


def codes_of_failures() -> FailureCodes:
    """The run codes of the extension for every failure of the engine."""
    return FailureCodes(
        {subject: _run_code(result) for subject, result in attempts._UNPREPARED.items()},
        {
            doubt: (_run_code(if_unsent), _run_code(if_sent))
            for doubt, (if_sent, if_unsent) in attempts._FREEZE_RESULTS.items()
            if doubt is not None
        },
    )


def _run_code(result: FreezeResult | Code) -> str:
    if isinstance(result, Code):
        return str(int(result))
    # With a good snapshot, if there was an attempt.
    items = () if result is FreezeResult.NOT_TRIED else (SnapshotItem(True),)
    return str(int(outcome_of(Attempt(Taker.GUEST, result, items), may_be_crash_consistent=False).run_code))


def handler_verbs() -> set[str]:
    """The verbs that ``bin/handler`` accepts, from its usage message."""
    usage = re.search(r'"usage: bin/handler ([a-z|]+)"', _text("handler/bin/handler"))
    assert usage is not None
    return set(usage[1].split("|"))


def make_targets() -> set[str]:
    """The targets of the Makefile that people run."""
    return set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))


def _text(path: str) -> str:
    return (REPOSITORY / path).read_text()
