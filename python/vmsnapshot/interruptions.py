"""Handles SIGINT, SIGTERM and SIGHUP: obeys them while nothing can be frozen, and only notes them later."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruptions:
    """A context manager that obeys SIGINT, SIGTERM and SIGHUP until `hold`, and only notes them afterwards.

    `hold` is for the phase ``freeze``, which the window follows at once. A run that has begun to freeze ends
    by itself, and its report must get out.
    """

    def __init__(self) -> None:
        self.noted: list[str] = []
        self._is_holding = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """Stops obeying signals. Prints nothing, because the window follows."""
        self._is_holding = True

    def release(self) -> None:
        """Obeys signals again. Raises `KeyboardInterrupt` if one arrived since `hold`."""
        self._is_holding = False
        if self.noted:
            # A second signal must not interrupt the clean-up that the first one starts.
            self._is_holding = True
            raise KeyboardInterrupt

    def obey(self) -> None:
        """Raises `KeyboardInterrupt` if a signal arrived that should have ended the process already.

        Python swallows the exception that a signal handler raises while a finalizer or the callback of a weak
        reference is running. Call this before and during a long wait, but not while something may be
        frozen.
        """
        if self.noted:
            raise KeyboardInterrupt

    def __enter__(self) -> Interruptions:
        # Python runs signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            number: int
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # An ignored signal (nohup) stays ignored. `None` is a handler that Python cannot put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self.noted.append(signal.Signals(number).name)
        if not self._is_holding:
            # As in `release`.
            self._is_holding = True
            raise KeyboardInterrupt
