"""A child process that is talked to line by line, with a limit on every wait.

The child has its own session, so nothing that ends the run's terminal or service ends it. If its keeper is
killed, it reads the end of its standard input; a client of a database ends then, and so does its session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import TypedDict

from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.programs import account_of

# What is kept of the child's standard error, and of a line that has no end.
COMPLAINTS_MAX_BYTES = 4096
LINE_MAX_BYTES = 1 << 20
# How much of that an error repeats.
WORDS_MAX = 400
# After the end of its standard input, and after SIGTERM.
END_SECONDS = 1.0
TERM_SECONDS = 1.0
# After SIGKILL. A process in state D ends later, by itself.
KILL_SECONDS = 1.0


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity(linux_user: str | None) -> _Identity:
    if linux_user is None:
        return {}
    account = account_of(linux_user)
    groups = os.getgrouplist(linux_user, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


class Conversation:
    """The child and its three pipes. `subject` is what an error calls it."""

    def __init__(
        self,
        subject: str,
        arguments: Sequence[str],
        run: RunLink,
        *,
        environment: Mapping[str, str],
        linux_user: str | None = None,
        directory: str = "/",
    ) -> None:
        self._subject = subject
        self._run = run
        self._received = b""
        self._complaints = b""
        try:
            self._child = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=directory,
                env=dict(environment),
                start_new_session=True,
                **_identity(linux_user),
            )
        except OSError as error:
            cause = (error.strerror or "input/output error").lower()
            raise QuiesceError("not-started", f"could not start {subject}: {cause}") from error
        # Popen makes all three, as it was told.
        pipes = (self._child.stdin, self._child.stdout, self._child.stderr)
        self._pipes = [pipe for pipe in pipes if pipe is not None]
        self._input, self._output, self._errors = (pipe.fileno() for pipe in self._pipes)
        self._open = {self._output, self._errors}
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)

    def send(self, text: str) -> None:
        """Writes to the child's standard input. Our texts fit into an empty pipe."""
        try:
            written = os.write(self._input, text.encode())
        except (BlockingIOError, BrokenPipeError):
            written = 0
        if written != len(text.encode()):
            raise self.failed("session-lost", "does not read any more")

    def line(self, deadline: float) -> str:
        """Returns the next line of the child's standard output, without its end.

        Raises `QuiesceError` with the code ``session-lost`` if there is none because the child has closed it,
        ``timed-out`` at the deadline, and `RunGone`.
        """
        while b"\n" not in self._received:
            if self._output not in self._open:
                raise self.failed("session-lost", "has ended")
            if len(self._received) > LINE_MAX_BYTES:
                raise self.failed("bad-answer", "sends a line without an end")
            if not self._run.wait(tuple(self._open), deadline):
                raise self.failed("timed-out", "did not answer in time")
            has_ended = self._child.poll() is not None
            self._read()
            if has_ended and b"\n" not in self._received:
                raise self.failed("session-lost", "has ended")
        line, _, self._received = self._received.partition(b"\n")
        return line.decode("utf-8", "replace")

    def status(self, deadline: float) -> int | None:
        """Waits until the child has ended, whoever else holds its pipes. Returns its exit status, or `None`
        at the deadline. Negative numbers are signals."""
        while self._child.poll() is None:
            if not self._run.wait(tuple(self._open), deadline):
                return None
            self._read_last_words()
        self._read_last_words()
        return self._child.returncode

    def close_input(self) -> None:
        """Ends the child's standard input."""
        self._pipes[0].close()

    def failed(self, code: str, what: str) -> QuiesceError:
        """Returns an error about the child, with the last words that it wrote to its standard error."""
        if self._errors in self._open:
            with contextlib.suppress(BlockingIOError):
                self._complaints = (self._complaints + os.read(self._errors, 65536))[-COMPLAINTS_MAX_BYTES:]
        words = " ".join(self._complaints.decode("utf-8", "replace").split(None))[-WORDS_MAX:]
        return QuiesceError(code, f"{self._subject} {what}" + (f": {words}" if words else ""))

    def end(self) -> None:
        """Ends the child and waits for it, with a limit. Its standard input ends first, so that it can end
        by itself; then everything in its process group is ended by signals."""
        for pipe in self._pipes:
            pipe.close()
        for number, seconds in (
            (0, END_SECONDS),
            (signal.SIGTERM, TERM_SECONDS),
            (signal.SIGKILL, KILL_SECONDS),
        ):
            # Until the child is reaped, its number is the group's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(seconds)
                break

    def _read_last_words(self) -> None:
        self._read()
        self._complaints = (self._complaints + self._received)[-COMPLAINTS_MAX_BYTES:]
        self._received = b""

    def _read(self) -> None:
        for descriptor in tuple(self._open):
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                continue
            if not data:
                self._open.discard(descriptor)
            elif descriptor == self._output:
                self._received += data
            else:
                self._complaints = (self._complaints + data)[-COMPLAINTS_MAX_BYTES:]
