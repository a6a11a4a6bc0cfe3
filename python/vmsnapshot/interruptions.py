"""Signals that ask for an end: obeyed while nothing can be frozen, noted from then on."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruptions:
    """While entered, takes the signals that ask for an end: obeys them until `hold`, and then notes them.

    `hold` is for the phase ``freeze``, which the window follows at once. A run that has begun to freeze ends by
    itself, and its report must get out.
    """

    def __init__(self) -> None:
        self.noted: list[str] = []
        self._is_holding = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """From here on nothing is obeyed; prints nothing, for the window's sake."""
        self._is_holding = True

    def release(self) -> None:
        """Obeys again, and at once if something came meanwhile: raises `KeyboardInterrupt`."""
        self._is_holding = False
        if self.noted:
            # A second one must not interrupt what the first one has begun.
            self._is_holding = True
            raise KeyboardInterrupt

    def obey(self) -> None:
        """Raises `KeyboardInterrupt` if something came that should have ended the process already.

        Python swallows an exception that a signal raises while a finalizer or a weak reference's callback is
        running. Whoever waits for long calls this before and while it waits; not after `hold`.
        """
        if self.noted:
            raise KeyboardInterrupt

    def __enter__(self) -> Interruptions:
        # Signals are handled in the main thread only, so none is raised in another.
        if threading.current_thread() is threading.main_thread():
            number: int
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # One that is ignored (nohup) stays so; None is a handler that Python could not put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.noted.append(signal.Signals(number).name)
        if not self._is_holding:
            # A second one must not interrupt what the first one has begun.
            self._is_holding = True
            raise KeyboardInterrupt
