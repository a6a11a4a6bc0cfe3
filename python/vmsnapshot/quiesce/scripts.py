"""Runs a script before the freeze, and one after the thaw."""

from __future__ import annotations

import time

from vmsnapshot.quiesce.applications import Scripts
from vmsnapshot.quiesce.conversation import Conversation
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.programs import plain_environment
from vmsnapshot.quiesce.quiescer import Quiescer

SHELL = "/bin/sh"


class ScriptsQuiescer(Quiescer):
    """Both scripts. The second one runs exactly once if the first one was begun, also if that failed."""

    proof = "script"
    is_released_late = True

    def __init__(self, scripts: Scripts, run: RunLink) -> None:
        super().__init__()
        self._scripts = scripts
        self._run = run
        self._running: Conversation | None = None
        self.method = scripts.before

    def ready(self, deadline: float) -> None:
        """Does nothing: whoever names the scripts has checked them."""

    def quiesce(self, deadline: float) -> None:
        """Runs the first script."""
        scripts = self._scripts
        self._try("pre", "", scripts.before, scripts.before_arguments, scripts.before_tries, deadline)

    def release(self, outcome: str, deadline: float) -> None:
        """Runs the second script."""
        scripts = self._scripts
        self._try("post", outcome, scripts.after, scripts.after_arguments, scripts.after_tries, deadline)

    def close(self) -> None:
        """Ends a script that is still running, with its process group."""
        if self._running is not None:
            self._running.end()
            self._running = None

    def _try(
        self,
        phase: str,
        outcome: str,
        script: str,
        arguments: tuple[str, ...],
        tries: int,
        deadline: float,
    ) -> None:
        for left in reversed(range(tries)):
            try:
                self._execute(phase, outcome, script, arguments, deadline)
            except QuiesceError as error:
                if left == 0 or error.code == f"{phase}-script-timeout":
                    raise
            else:
                return

    def _execute(
        self, phase: str, outcome: str, script: str, arguments: tuple[str, ...], deadline: float
    ) -> None:
        environment = {
            **plain_environment(),
            "VMSNAPSHOT_PHASE": phase,
            "VMSNAPSHOT_OUTCOME": outcome,
            "VMSNAPSHOT_TASK": self._scripts.task,
            "VMSNAPSHOT_SECONDS": f"{max(0.0, deadline - time.monotonic()):.0f}",
        }
        self._running = running = Conversation(
            f"the {phase}-script `{script}`",
            [SHELL, script, *arguments],
            self._run,
            environment=environment,
            directory=self._scripts.directory,
        )
        running.close_input()
        try:
            status = running.status(deadline)
            if status is None:
                raise running.failed(f"{phase}-script-timeout", "did not end in time")
            if status != 0:
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                raise running.failed(f"{phase}-script-failed", f"ended with {how}")
        finally:
            self.close()
