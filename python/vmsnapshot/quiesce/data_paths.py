"""On which filesystem a file or directory lies."""

from __future__ import annotations

import os
from pathlib import Path


def device_of(path: str) -> str | None:
    """Returns mountinfo's major:minor of the filesystem on which `path` lies, or `None` if it is not found.

    The number is the mount's, and not `st_dev`, which is another one on btrfs.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        facts = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().splitlines()
        mount = next((line.split()[1] for line in facts if line.startswith(b"mnt_id:")), None)
        mounts = (line.split() for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
        found = next((fields[2] for fields in mounts if fields[0] == mount), None)
    finally:
        os.close(descriptor)
    return found.decode() if found is not None else None


def data_records(paths: list[str]) -> list[dict[str, str | None]]:
    """Returns each path with its symbolic links resolved, and its device."""
    return [{"path": os.path.realpath(path), "device": device_of(path)} for path in dict.fromkeys(paths)]
