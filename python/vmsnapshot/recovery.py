"""What runs of ours left frozen, and its thaw: the engine's two JSON documents as typed values.

The types describe the documents; README.md describes them key by key. Nothing is decided here.
"""

from __future__ import annotations

import json
from typing import TypedDict, cast

from vmsnapshot import _native


class FrozenFilesystem(TypedDict):
    """One filesystem that a run of ours froze and that was not thawed, as far as is known."""

    mount_point: str
    device: str
    run_id: str
    since: str
    state: str


class RunFilesystem(TypedDict):
    """One filesystem of a run, as the run or its watchdog last wrote it down."""

    mount_point: str
    device: str
    state: str
    thawed_by: str | None
    frozen_at: str | None
    thawed_at: str | None


class Run(TypedDict):
    """One run that has left its state in ``/run/vmsnapshot``."""

    run_id: str
    started_at: str | None
    """When its window began; none if it has not."""
    pid: int
    alive: bool
    watchdog_pid: int
    watchdog_alive: bool
    fired: str | None
    finished: bool
    filesystems: list[RunFilesystem]


class RcuExpedited(TypedDict):
    """The machine's expedited RCU setting, and the run that has switched it on, if one has."""

    value: int | None
    held_by: str | None


class RunStatus(TypedDict):
    """What is frozen, by which run, since when."""

    frozen: list[FrozenFilesystem]
    runs: list[Run]
    rcu_expedited: RcuExpedited


class ThawedFilesystem(TypedDict):
    """One filesystem that was thawed now."""

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
    """One filesystem that was not touched, and why."""

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
    """Tells what is frozen and by which run, from ``/run/vmsnapshot``; asks no filesystem.

    The kernel cannot be asked whether a filesystem is frozen, so this knows of runs of ours only.

    Raises:
        VmsnapshotError: the state could not be read.
    """
    return cast(RunStatus, json.loads(_native.status()))


def thaw() -> ThawOutcome:
    """Thaws what runs of ours that are no longer alive left frozen; leaves everything else alone.

    Raises:
        ThawError: nothing could be tried (not root, state unreadable).
    """
    return cast(ThawOutcome, json.loads(_native.thaw()))
