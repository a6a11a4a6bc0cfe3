"""Ctrl-C at any time in a program that has to remove what it makes."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptedBySignalError(BaseException):
    """A signal asks the program to end. Not an `Exception`, so that no handler of failures catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruptions:
    """Raises `InterruptedBySignalError` for the first of SIGINT, SIGTERM and SIGHUP, and only for that one.

    So no second signal interrupts the clean-up. During `held` the signal is only recorded, and
    raised afterwards, so that no program or mount is made without a record of it.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._is_held = False
        self._is_over = False
        for number in _SIGNALS:
            # A signal that is ignored (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds signals until the end of the block, also if it fails.

        The same Ctrl-C can be why it fails: it reaches the whole process group, and so also a program that
        the block is just starting in a session of its own.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            if self._noted is not None:
                self._raise(self._noted)

    def end(self) -> None:
        """Raises no signal from now on."""
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
