"""The exceptions of ``vmsnapshot``; the compiled engine raises them too.

Every error has a stable ``code``; its wording is not part of the interface. No message holds a secret.
"""

from __future__ import annotations


class VmsnapshotError(Exception):
    """Something could not be done; nothing is frozen because of it.

    ``code`` is stable and meant for programs; ``hint`` says what the reader can do, when there is something.
    """

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class PlanError(VmsnapshotError):
    """What to freeze could not be worked out: a pattern, a mount, or the system's own tables."""


class PrepareError(VmsnapshotError):
    """A run could not be prepared: privileges, arguments, blobs, connections, or the watchdog."""


class ThawError(VmsnapshotError):
    """What a run left frozen could not be thawed."""


class ArgumentsError(VmsnapshotError):
    """The command line, or a file that it names, is wrong; nothing was begun."""
