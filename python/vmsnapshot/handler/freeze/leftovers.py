"""Thaws what a killed run may have left frozen."""

from __future__ import annotations

import vmsnapshot
from vmsnapshot import VmsnapshotError
from vmsnapshot.handler.log import Log


def thaw_leftovers(log: Log) -> None:
    """Thaws what dead runs of vmsnapshot left frozen, and logs it. Leaves everything else alone.

    Blocking: as long as FITHAW waits for its disk.
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
