"""Shows and thaws what runs of vmsnapshot left frozen: the engine's two JSON documents as typed values.

This module decides nothing. The documentation describes both documents key by key.
"""

from __future__ import annotations

import json
from typing import TypedDict, cast

from vmsnapshot import _native


class FrozenFilesystem(TypedDict):
    """One filesystem that a run froze and that is not known to be thawed."""

    mount_point: str
    device: str
    run_id: str
    since: str
    state: str


class RunFilesystem(TypedDict):
    """One filesystem of a run, in the state that the run or its watchdog recorded last."""

    mount_point: str
    device: str
    state: str
    thawed_by: str | None
    frozen_at: str | None
    thawed_at: str | None


class Run(TypedDict):
    """One run that has a ledger in ``/run/vmsnapshot``."""

    run_id: str
    started_at: str | None
    """When its window began. `None` before that."""
    pid: int
    alive: bool
    watchdog_pid: int
    watchdog_alive: bool
    fired: str | None
    finished: bool
    filesystems: list[RunFilesystem]


class RcuExpedited(TypedDict):
    """The machine's setting of expedited RCU, and the run that has switched it on, or `None`."""

    value: int | None
    held_by: str | None


class RunStatus(TypedDict):
    """What is frozen, by which run and since when."""

    frozen: list[FrozenFilesystem]
    runs: list[Run]
    rcu_expedited: RcuExpedited


class ThawedFilesystem(TypedDict):
    """One filesystem that this call thawed."""

    mount_point: str
    device: str
    run_id: str


class FailedThaw(TypedDict):
    """One filesystem that could not be thawed."""

    mount_point: str
    device: str
    run_id: str
    error: str


class LeftAlone(TypedDict):
    """One filesystem that was left alone, and the reason."""

    mount_point: str
    run_id: str
    why: str


class ThawOutcome(TypedDict):
    """What a thaw did."""

    thawed: list[ThawedFilesystem]
    failed: list[FailedThaw]
    left_alone: list[LeftAlone]
    rcu_restored: bool


def status() -> RunStatus:
    """Returns what is frozen and by which run, from ``/run/vmsnapshot``. Touches no filesystem.

    The kernel cannot be asked whether a filesystem is frozen, so this shows runs of vmsnapshot only.

    Raises:
        VmsnapshotError: the state could not be read.
    """
    return cast(RunStatus, json.loads(_native.status()))


def thaw() -> ThawOutcome:
    """Thaws what dead runs of vmsnapshot left frozen, and leaves everything else alone.

    Raises:
        ThawError: no thaw was tried, because the process is not root or the state could not be read.
    """
    return cast(ThawOutcome, json.loads(_native.thaw()))
