"""The exceptions of ``vmsnapshot``. The compiled engine raises them too.

Every error has a stable ``code`` and a ``kind``; its wording is not part of the interface. SECURITY.md names
the cases in which a message holds a secret.
"""

from __future__ import annotations

# Not from `typing`, whose import takes most of the time in which Ctrl-C is not handled yet (`__main__`).
TYPE_CHECKING = False

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorKind, ErrorSubject


class VmsnapshotError(Exception):
    """The base class of all errors.

    ``code`` names the error and is stable. ``kind`` is what must change before another try can succeed;
    programs decide by it. ``hint`` is what the reader can do, or `None`.
    """

    def __init__(self, message: str, *, code: str, kind: ErrorKind, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.kind: ErrorKind = kind
        self.hint = hint


class PlanError(VmsnapshotError):
    """The plan failed: a pattern is wrong, or the kernel's tables cannot be read."""


class PrepareError(VmsnapshotError):
    """A run could not be prepared.

    ``subject`` says what could not be prepared: ``callee`` is a blob or the host.
    """

    def __init__(
        self, message: str, *, code: str, kind: ErrorKind, subject: ErrorSubject, hint: str | None = None
    ) -> None:
        super().__init__(message, code=code, kind=kind, hint=hint)
        self.subject: ErrorSubject = subject


class ThawError(VmsnapshotError):
    """What a run left frozen could not be thawed, or could not be read."""


class ArgumentsError(VmsnapshotError):
    """The command line, or a file that it names, is not valid. Nothing was started."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, code=code, kind="arguments", hint=hint)
