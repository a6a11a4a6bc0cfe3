"""Applications in order: made ready, held still, released in reverse order, each with its record."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from vmsnapshot.quiesce.applications import Application
from vmsnapshot.quiesce.data_paths import data_records
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.kinds import quiescer_of
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.quiescer import Quiescer


@dataclass
class _One:
    application: Application
    quiescer: Quiescer
    error: QuiesceError | None = None
    data: list[dict[str, str | None]] = field(default_factory=list)
    ready_ns: int | None = None
    asked_at_ns: int | None = None
    quiesced_at_ns: int | None = None
    proven_at_ns: int | None = None
    released_at_ns: int | None = None

    def record(self) -> dict[str, Any]:
        error = {"code": self.error.code, "message": str(self.error)} if self.error else None
        return {
            "name": self.application.label(),
            "kind": self.application.kind,
            "required": self.application.required,
            "method": self.quiescer.method,
            "proof": self.quiescer.proof,
            "error": error,
            "ready_ns": self.ready_ns,
            "asked_at_ns": self.asked_at_ns,
            "quiesced_at_ns": self.quiesced_at_ns,
            "proven_at_ns": self.proven_at_ns,
            "released_at_ns": self.released_at_ns,
            "position": self.quiescer.position.values,
            "position_is": self.quiescer.position.position_is,
            "data": self.data,
            "files": self.quiescer.files,
        }


class Applications:
    """All applications of a run, in the order in which they are asked to hold still."""

    def __init__(self, applications: list[Application], run: RunLink) -> None:
        self._all = [_One(application, quiescer_of(application, run)) for application in applications]
        self._begun: list[_One] = []

    def ready(self) -> None:
        """Makes each ready. One that fails is recorded, and ends it if it is required. Raises `RunGone`."""
        for one in self._all:
            began = time.monotonic_ns()
            try:
                one.quiescer.ready(time.monotonic() + one.application.ready_seconds)
                one.data = data_records(one.quiescer.data)
            except QuiesceError as error:
                one.error = error
                if one.application.required:
                    return
            else:
                one.ready_ns = time.monotonic_ns() - began

    def quiesce(self, limit_seconds: float) -> None:
        """Makes each that is ready hold still, within `limit_seconds` each. As `ready` otherwise."""
        for one in self._all:
            if one.error is not None or one.ready_ns is None:
                continue
            self._begun.append(one)
            one.asked_at_ns = time.monotonic_ns()
            try:
                one.quiescer.quiesce(time.monotonic() + one.application.longest_wait(limit_seconds))
            except QuiesceError as error:
                one.error = error
                if not one.quiescer.is_released_late:
                    one.quiescer.close()
                    one.released_at_ns = time.monotonic_ns()
                if one.application.required:
                    return
            else:
                one.quiesced_at_ns = time.monotonic_ns()

    def release(self, outcome: str) -> None:
        """Releases each that was begun, the last one first. Its answer is the proof that it held still."""
        while self._begun:
            one = self._begun.pop()
            if one.released_at_ns is not None:
                continue
            asked_at_ns = time.monotonic_ns()
            try:
                if one.quiesced_at_ns is not None or one.quiescer.is_released_late:
                    one.quiescer.release(outcome, time.monotonic() + one.application.release_seconds)
                    one.proven_at_ns = asked_at_ns
            except QuiesceError as error:
                # The first error is the cause.
                one.error = one.error or error
                one.quiescer.close()
            finally:
                one.released_at_ns = time.monotonic_ns()

    def expire(self, error: QuiesceError) -> None:
        """Records that those that are held are not held long enough."""
        for one in self._begun:
            one.error = one.error or error

    def close(self) -> None:
        """Ends everything that was started."""
        for one in reversed(self._all):
            one.quiescer.close()

    def records(self) -> list[dict[str, Any]]:
        """Returns what is known of each, as the engine reads it."""
        return [one.record() for one in self._all]
