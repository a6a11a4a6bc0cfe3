"""What the keeper does with an application, whichever it is."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass
class Position:
    """Where an application's log stood while the application held still.

    ``exact``: a snapshot contains everything up to it and nothing after it. ``lower-bound``: everything up to
    it, and perhaps more.
    """

    values: dict[str, str] = field(default_factory=dict)
    position_is: Literal["exact", "lower-bound"] | None = None


class Quiescer(abc.ABC):
    """One application. Each method is called once, in this order, and `close` in any case.

    Deadlines are instants of `time.monotonic`. Every method raises `QuiesceError` for a failure of the
    application and `RunGone` if the run ends meanwhile.
    """

    # What a good `release` proves.
    proof: ClassVar[Literal["session", "script"]]
    # Whether `release` is called after the thaw although `quiesce` has failed, and not `close` at once.
    is_released_late: ClassVar[bool] = False

    def __init__(self) -> None:
        # The statement or program that holds it still, for the report. It is complete after `ready`.
        self.method: str | None = None
        # The files and directories that a snapshot must contain. Complete after `ready`.
        self.data: list[str] = []
        self.position = Position()
        # What a restore needs beside the snapshots, by name. Complete after `release`.
        self.files: dict[str, str] = {}

    @abc.abstractmethod
    def ready(self, deadline: float) -> None:
        """Does everything that is slow and holds nobody up: connects, checks, flushes."""

    @abc.abstractmethod
    def quiesce(self, deadline: float) -> None:
        """Makes the application hold still, and notes its position. Sends nothing after it has returned."""

    @abc.abstractmethod
    def release(self, outcome: str, deadline: float) -> None:
        """Asks for the proof that it held still up to this call, and releases it whatever the answer is."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends everything that was started. The application is released afterwards, whatever failed."""
