"""Shows on standard error where a run is while it prepares; never inside the window.

On a terminal each phase is named as it begins. Elsewhere (cron, a service's log) a phase is named only when
it has taken a second, so that an ordinary run leaves nothing behind; the last one, when an earlier one was.
"""

from __future__ import annotations

import threading

from vmsnapshot.cli.streams import is_terminal, say
from vmsnapshot.interruptions import FREEZING

PATIENCE_S = 1.0


class Progress:
    """Takes the sentences of `prepare(progress=...)`.

    `close` it before the window: after that nothing more is written.
    """

    def __init__(self) -> None:
        self._at_once = is_terminal("stderr")
        self._timer: threading.Timer | None = None
        self._has_spoken = False

    def __call__(self, sentence: str) -> None:
        """Notes that the phase described by `sentence` begins."""
        self.close()
        if self._at_once or (sentence == FREEZING and self._has_spoken):
            # Said now or never, because the window follows at once.
            say(sentence)
            return
        if sentence == FREEZING:
            return
        # A thread, because the main one is inside the engine for the whole of a phase.
        self._timer = threading.Timer(PATIENCE_S, self._speak, args=(sentence,))
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Notes that the last phase is over; returns when nothing of this is running any more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def _speak(self, sentence: str) -> None:
        self._has_spoken = True
        say(sentence)
