"""The run's end of the keeper. The engine calls it for ``prepare(..., quiescers=[...])``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnapshot.errors import PrepareError
from vmsnapshot.quiesce import link
from vmsnapshot.quiesce.applications import Application
from vmsnapshot.quiesce.kinds import to_document

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorKind  # noqa: TID251 (literals, for types)

_LOST = {"code": "keeper-lost", "message": "the keeper of the applications ended, or does not answer"}
# What the keeper may take beyond the limits of its applications.
SLACK_SECONDS = 5.0
# Isolated, so that neither the environment nor the working directory decides what is imported.
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from vmsnapshot.quiesce.keeper_process import main; main(int(sys.argv[1]))"
)


class Keeper:
    """The process that holds the applications of one run. `close` ends it.

    Its constructor returns at once; `wait_until_ready` waits for the applications.
    """

    def __init__(self, applications: Sequence[Application]) -> None:
        self._applications = list(applications)
        labels = [application.label() for application in self._applications]
        for label in labels:
            if labels.count(label) > 1:
                # The report tells them apart by these.
                raise _error("bad-application", f"two applications are called `{label}`; name one of them")
        self._records = [_unknown(application) for application in self._applications]
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = Path(__file__).resolve().parents[2]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _PROGRAM, str(package), str(os.getpid())],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            self._end.close()
            cause = (error.strerror or "input/output error").lower()
            raise _error("keeper-lost", f"could not start the keeper of the applications: {cause}") from error
        self._send({"applications": [to_document(application) for application in self._applications]})

    def wait_until_ready(self) -> None:
        """Waits until every application is ready. Raises `PrepareError` if a required one is not."""
        self._expect(sum(application.ready_seconds for application in self._applications))

    def last_records(self) -> list[dict[str, Any]]:
        """Returns what the keeper said last of each application."""
        return self._records

    def fileno(self) -> int:
        """Returns the descriptor to which the engine writes the release."""
        return self._end.fileno()

    def quiesce(self, limit_seconds: float, hold_seconds: float) -> None:
        """Waits until every application holds still. Raises `PrepareError` if a required one does not."""
        self._send({"quiesce": {"limit_seconds": limit_seconds, "hold_seconds": hold_seconds}})
        self._expect(sum(item.longest_wait(limit_seconds) for item in self._applications))

    def release(self, outcome: str) -> None:
        """Releases all, as the engine does after a thaw."""
        self._send({"release": outcome})

    def records(self) -> str:
        """Returns what is known of each application after the release, as JSON. Never raises."""
        if not self._receive(sum(application.release_seconds for application in self._applications)):
            self._lose()
        return json.dumps(self._records)

    def close(self) -> None:
        """Ends the keeper, which releases what it holds, and waits for it with a limit."""
        self._end.close()
        limit = sum(application.release_seconds for application in self._applications) + SLACK_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit)

    def _send(self, packet: dict[str, object]) -> None:
        # If the keeper is gone, there is no answer either.
        with contextlib.suppress(OSError):
            link.send(self._end, packet)

    def _expect(self, seconds: float) -> None:
        """Waits for the keeper's next records. Raises `PrepareError` for a required application."""
        if not self._receive(seconds):
            self._lose()
        for record in self._records:
            error = record["error"]
            if error is not None and record["required"]:
                raise _error(error["code"], f"application `{record['name']}`: {error['message']}")

    def _lose(self) -> None:
        """Records that the keeper gives no answer. What it said before proves nothing of what came after."""
        self._records = [{**record, "error": record["error"] or _LOST} for record in self._records]

    def _receive(self, seconds: float) -> bool:
        """Takes the keeper's next records. Returns `False`, and keeps those that are known, if none come."""
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        deadline = time.monotonic() + seconds + SLACK_SECONDS
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return False
        packet = None
        with contextlib.suppress(OSError, ValueError):
            packet = link.receive(self._end)
        if packet is None:
            return False
        self._records = packet["records"]
        return True


def _unknown(application: Application) -> dict[str, Any]:
    return {
        "name": application.label(),
        "kind": application.kind,
        "required": application.required,
        "method": None,
        "proof": None,
        "error": None,
        "ready_ns": None,
        "asked_at_ns": None,
        "quiesced_at_ns": None,
        "proven_at_ns": None,
        "released_at_ns": None,
        "position": {},
        "position_is": None,
        "data": [],
        "files": {},
    }


def _error(code: str, message: str) -> PrepareError:
    kind: ErrorKind = "arguments" if code == "bad-application" else "system"
    return PrepareError(message, code=code, kind=kind, subject="application")
