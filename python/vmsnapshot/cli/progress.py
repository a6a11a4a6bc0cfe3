"""Shows the phases of the preparation on standard error; writes nothing inside the window.

On a terminal, each phase is shown when it begins. Elsewhere (cron, the log of a service) a phase is shown
only after a second, so that an ordinary run writes nothing. The last phase is shown if an earlier one was.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from vmsnapshot.cli.streams import is_terminal, say

if TYPE_CHECKING:
    from vmsnapshot._native import Phase

PATIENCE_S = 1.0

SENTENCES: dict[Phase, str] = {
    "open-filesystems": "opening the filesystems",
    "connect": "connecting to the blobs",
    "start-watchdog": "starting the watchdog",
    "sync": "writing out dirty data",
    "quiesce": "asking the applications to hold still",
    "freeze": "freezing",
}


class Progress:
    """Takes the phases of `prepare(progress=...)`, and puts them into words.

    `close` it before the window. It writes nothing afterwards.
    """

    def __init__(self) -> None:
        self._at_once = is_terminal("stderr")
        self._timer: threading.Timer | None = None
        self._has_spoken = False

    def __call__(self, phase: Phase) -> None:
        """Notes that `phase` begins."""
        self.close()
        sentence = SENTENCES[phase]
        if self._at_once or (phase == "freeze" and self._has_spoken):
            # Now or never, because the window follows at once.
            say(sentence)
            return
        if phase == "freeze":
            return
        # A thread, because the main thread is inside the engine during the whole phase.
        timer = threading.Timer(PATIENCE_S, self._speak, args=(sentence,))
        timer.daemon = True
        # If no thread is to be had, the run goes on in silence.
        with contextlib.suppress(RuntimeError):
            timer.start()
            self._timer = timer

    def close(self) -> None:
        """Records that the last phase is over. Returns when no thread of this object is running any more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def _speak(self, sentence: str) -> None:
        self._has_spoken = True
        say(sentence)
