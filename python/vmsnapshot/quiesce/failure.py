"""Why an application is not ready, does not hold still, or was lost."""

from __future__ import annotations


class QuiesceError(Exception):
    """One application failed. ``code`` is stable, and the text is one sentence without a secret."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RunGone(Exception):
    """The run has ended, or was killed. Whatever is held must be released."""
