"""What a run that was killed may have left frozen, and its thaw."""

from __future__ import annotations

import vmsnapshot
from vmsnapshot import VmsnapshotError
from vmsnapshot.handler.log import Log


def thaw_leftovers(log: Log) -> None:
    """Thaws what runs of ours that are gone left frozen, and says so; leaves everything else alone.

    Blocking: a FITHAW waits for its disk.
    """
    try:
        outcome = vmsnapshot.thaw()
    except VmsnapshotError as error:
        log.error(f"could not thaw what an earlier run may have left frozen: {error}")
        return
    for filesystem in outcome.thawed:
        log.warning(f"thawed `{filesystem.mount_point}`, which an earlier run had left frozen")
    for stuck in outcome.failed:
        log.error(f"could not thaw `{stuck.mount_point}`: {stuck.error}")
