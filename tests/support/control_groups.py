"""Control groups of a test's own, to end all of one at once as a service manager does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import require
from tests.support.mounts import read_mounts

ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
"""What to put before a group and a command: the shell enters the group, then becomes the command."""


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """A new group of the cgroup v2 hierarchy, which is removed at the end."""
    hierarchies = [mount.mount_point for mount in read_mounts() if mount.filesystem_type == "cgroup2"]
    require(bool(hierarchies), "a cgroup v2 hierarchy")
    group = hierarchies[0] / f"vmsnapshot-test-{os.getpid()}"
    group.mkdir()
    try:
        require((group / "cgroup.kill").exists(), "a kernel with cgroup.kill")
        yield group
    finally:
        until = time.monotonic() + 5.0
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                assert time.monotonic() < until, f"{group} is still in use"
                time.sleep(0.01)
