"""Where `--report` writes: checked before the freeze, written atomically after the thaw."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import vmsnapshot
from vmsnapshot.errors import ArgumentsError, PlanError


class ReportFile:
    """A path that a report can be written to. Checked when it is made: the directory takes new files.

    `device` is the mountinfo ``major:minor`` of the filesystem it lies on, none if that cannot be told.
    """

    def __init__(self, path: str) -> None:
        """Checks `path`.

        Raises:
            ArgumentsError: no report can be written there.
        """
        self.path = path
        try:
            # Through symbolic links, so that a link is written through and not replaced.
            self._target = Path(path).resolve()
            if path.endswith("/") or self._target.is_dir():
                raise _unwritable(path, "it is a directory")
            # The only check that is true for root, on a full disk and on a read-only filesystem alike.
            with tempfile.TemporaryFile(dir=self._target.parent) as trial:
                trial.write(b"\0")
        except (OSError, RuntimeError) as error:
            # A RuntimeError is a loop of symbolic links, before Python 3.13.
            cause = (
                error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be reached"
            )
            raise _unwritable(path, cause.lower()) from None
        self.device = _device_of(self._target.parent)

    def is_on(self, devices: Iterable[str]) -> bool:
        """Tells whether the file lies on one of `devices`: writing to it would hang while that is frozen."""
        return self.device is not None and self.device in set(devices)

    def write(self, document: str) -> None:
        """Puts `document` in place, whole or not at all, readable by its owner only.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        descriptor, temporary = tempfile.mkstemp(prefix=".vmsnapshot-report-", dir=self._target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise


def _unwritable(path: str, cause: str) -> ArgumentsError:
    return ArgumentsError(
        f"the report could not be written to `{path}`: {cause}",
        code="report-unwritable",
        hint="name a file in a directory that exists and takes new files",
    )


def _device_of(directory: Path) -> str | None:
    # mountinfo and not `st_dev`, which is another one for every subvolume of btrfs.
    try:
        devices = {
            mount.mount_point: mount.device for mount in vmsnapshot.machine().mounts if mount.is_visible
        }
    except PlanError:
        return None
    ancestors = (str(ancestor) for ancestor in (directory, *directory.parents))
    return next((devices[ancestor] for ancestor in ancestors if ancestor in devices), None)
