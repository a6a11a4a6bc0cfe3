"""Ctrl-C for a program that makes things which have to be taken down, whenever it comes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedBySignalError(BaseException):
    """Somebody wants the program to end; not an `Exception`, so that nothing takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruptions:
    """Raises `InterruptedBySignalError` for the first of SIGINT, SIGTERM and SIGHUP, and only for that one.

    So whoever takes down what was made is not interrupted again. While something is `held` the signal
    is noted and raised after it: no program or mount is lost between its making and the note of it.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._is_held = False
        self._is_over = False
        for number in _SIGNALS:
            # One that is ignored (nohup) stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lets the block end before a signal is raised."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._noted is not None:
            self._raise(self._noted)

    def end(self) -> None:
        """Raises nothing from now on."""
        self._is_over = True

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._is_held:
            self._noted = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> None:
        if not self._is_over:
            self._is_over = True
            raise InterruptedBySignalError(number)
