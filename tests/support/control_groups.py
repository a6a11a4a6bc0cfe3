"""Control groups for a test, which can kill everything in one at once, as a service manager does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import require
from tests.support.mounts import read_mounts

ENTER = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
"""Words that go before a group and a command: a shell enters the group and becomes the command."""


@contextlib.contextmanager
def control_group() -> Iterator[Path]:
    """Makes a group in the cgroup v2 hierarchy, and removes it at the end."""
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
