"""The exceptions of ``vmsnapshot``. The compiled engine raises them too.

Every error has a stable ``code``. The wording of a message may change in any release. No message contains a
secret.
"""

from __future__ import annotations


class VmsnapshotError(Exception):
    """Base class of all errors. An error never leaves anything frozen.

    ``code`` is stable and meant for programs. ``hint`` says what the reader can do, or is `None`.
    """

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class PlanError(VmsnapshotError):
    """The plan failed: a pattern is wrong, or the kernel's tables cannot be read."""


class PrepareError(VmsnapshotError):
    """The preparation of a run failed: privileges, arguments, blobs, connections or the watchdog."""


class ThawError(VmsnapshotError):
    """The filesystems that a run left frozen could not be thawed."""


class ArgumentsError(VmsnapshotError):
    """The command line is wrong, or a file that it names. Nothing was started."""
