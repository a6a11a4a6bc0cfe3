"""Holds an application still by means of a program that its operator wrote."""

from __future__ import annotations

from vmsnapshot.quiesce.applications import Hook
from vmsnapshot.quiesce.conversation import Conversation
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.programs import check_program, plain_environment
from vmsnapshot.quiesce.quiescer import Quiescer


class HookQuiescer(Quiescer):
    """The program, from its start to its end."""

    proof = "script"

    def __init__(self, hook: Hook, run: RunLink) -> None:
        super().__init__()
        self._hook = hook
        self._run = run
        self._started: Conversation | None = None
        self.method = hook.program

    def ready(self, deadline: float) -> None:
        """Starts the program and waits for ``ready``."""
        check_program(self._hook.program)
        self._started = Conversation(
            f"the hook `{self._hook.program}`",
            [self._hook.program, *self._hook.arguments],
            self._run,
            environment=plain_environment(),
        )
        self._expect("ready", deadline)

    def quiesce(self, deadline: float) -> None:
        """Sends ``quiesce`` and waits for ``quiesced``."""
        self._program.send("quiesce\n")
        self._expect("quiesced", deadline)

    def release(self, outcome: str, deadline: float) -> None:
        """Sends ``released OUTCOME`` and waits until the program has ended with status 0."""
        self._program.send(f"released {outcome}\n")
        status = self._program.status(deadline)
        if status is None:
            raise self._program.failed("timed-out", "did not end in time after its release")
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise self._program.failed("hook-failed", f"ended with {how} after its release")

    def close(self) -> None:
        """Ends the program if it has not ended by itself."""
        if self._started is not None:
            self._started.end()

    @property
    def _program(self) -> Conversation:
        if self._started is None:
            raise QuiesceError("not-started", f"the hook `{self._hook.program}` was not started")
        return self._started

    def _expect(self, word: str, deadline: float) -> None:
        line = self._program.line(deadline).strip()
        if line == word:
            return
        kind, _, text = line.partition(" ")
        subject = f"the hook `{self._hook.program}`"
        if kind == "error":
            raise QuiesceError("hook-failed", f"{subject} answered: {text or 'error'}")
        raise QuiesceError("bad-answer", f"{subject} answered `{line[:200]}` in place of `{word}`")
