"""Writes the file of `--report`: checks it before the freeze, and writes it atomically after the thaw."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

import vmsnapshot
from vmsnapshot.errors import ArgumentsError, PlanError


class ReportFile:
    """A path that a report can be written to. The constructor checks that the directory accepts new files.

    `device` is the ``major:minor`` in mountinfo of the filesystem that it lies on, or `None` if that is not
    known.
    """

    def __init__(self, path: str) -> None:
        """Checks `path`.

        Raises:
            ArgumentsError: a report cannot be written there.
        """
        self.path = path
        try:
            # The links above the file are followed, and one in its place is not: who can write to the
            # directory would choose what root replaces. A device would be replaced by a file.
            given = Path(path)
            self._target = given.parent.resolve() / given.name
            if path.endswith("/") or given.is_dir():
                raise _unwritable(path, "it is a directory")
            if os.path.lexists(self._target) and not stat.S_ISREG(self._target.lstat().st_mode):
                raise _unwritable(path, "it is not a regular file")
            # The only check that is right for root, for a full disk and for a read-only filesystem.
            with tempfile.TemporaryFile(dir=self._target.parent) as trial:
                trial.write(b"\0")
        except (OSError, RuntimeError) as error:
            # Before Python 3.13, a loop of symbolic links is a `RuntimeError`.
            cause = (
                error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be reached"
            )
            raise _unwritable(path, cause.lower()) from None
        self.device = _device_of(self._target.parent)

    def is_on(self, devices: Iterable[str]) -> bool:
        """Returns whether the file lies on one of `devices`. A write hangs while that device is frozen."""
        return self.device is not None and self.device in set(devices)

    def write(self, document: str) -> None:
        """Writes `document` completely or not at all. Only its owner can read it.

        Raises:
            OSError: it could not be written. An older file is still there.
        """
        self._replace(self._target, document)

    def write_beside(self, name: str, content: str) -> None:
        """Writes another file of the run, called as the report and then `name`, in the same way."""
        self._replace(self._target.with_name(f"{self._target.name}.{name}"), content)

    def _replace(self, target: Path, document: str) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=".vmsnapshot-report-", dir=self._target.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise


def _unwritable(path: str, cause: str) -> ArgumentsError:
    return ArgumentsError(
        f"the report could not be written to `{path}`: {cause}",
        code="report-unwritable",
        hint="name a file in a directory that exists and accepts new files",
    )


def _device_of(directory: Path) -> str | None:
    # From mountinfo and not from `st_dev`, which differs for every subvolume of a btrfs.
    try:
        devices = {
            mount.mount_point: mount.device for mount in vmsnapshot.machine().mounts if mount.is_visible
        }
    except PlanError:
        return None
    ancestors = (str(ancestor) for ancestor in (directory, *directory.parents))
    return next((devices[ancestor] for ancestor in ancestors if ancestor in devices), None)
