"""Rehearses holding applications still, without a freeze: are they ready, and how long would they be held?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vmsnapshot.cli.readable import duration_text
from vmsnapshot.cli.streams import printable
from vmsnapshot.cli.tables import Cell, Column, Screen, Tone, render
from vmsnapshot.quiesce import Application
from vmsnapshot.quiesce.keeper import Keeper

if TYPE_CHECKING:
    from vmsnapshot._native import Plan

# As a run with the default thaw timeout would wait.
LIMIT_SECONDS = 10.0
HOLD_SECONDS = 15.0


class Rehearsed(NamedTuple):
    """What is known of one application after its rehearsal. `uncovered` is the data that no freeze covers."""

    name: str
    kind: str
    required: bool
    is_good: bool
    method: str | None
    ready_ms: float | None
    lock_wait_ms: float | None
    held_ms: float | None
    uncovered: list[str]
    error_code: str | None
    error: str | None


def check(applications: Sequence[Application], plan: Plan) -> list[Rehearsed]:
    """Makes each application ready and ends it again. Nothing is held."""
    keeper = Keeper(_each_for_itself(applications))
    try:
        keeper.wait_until_ready()
        records = keeper.last_records()
    finally:
        keeper.close()
    return _rehearsed(applications, records, plan, is_held=False)


def hold_once(applications: Sequence[Application], plan: Plan) -> list[Rehearsed]:
    """Holds each application still and releases it at once. Nothing is frozen."""
    keeper = Keeper(_each_for_itself(applications))
    try:
        keeper.wait_until_ready()
        keeper.quiesce(LIMIT_SECONDS, HOLD_SECONDS)
        keeper.release("not-asked")
        records = json.loads(keeper.records())
    finally:
        keeper.close()
    return _rehearsed(applications, records, plan, is_held=True)


def document(rehearsed: Sequence[Rehearsed]) -> dict[str, Any]:
    """Returns what programs read."""
    return {"schema_version": 1, "applications": [item._asdict() for item in rehearsed]}


def text(rehearsed: Sequence[Rehearsed], screen: Screen) -> str:
    """Describes the rehearsal for people."""
    columns = [
        Column("APPLICATION", flexible=True),
        Column("KIND"),
        Column("OUTCOME"),
        Column("READY", numeric=True),
        Column("WAITED", numeric=True),
        Column("HELD", numeric=True),
        Column("BY", flexible=True),
    ]
    lines = render(columns, [_row(item) for item in rehearsed], screen)
    for item in rehearsed:
        faults = [": ".join(part for part in (item.error_code, item.error) if part)] if item.error else []
        faults += [f"data-not-covered: `{path}` is on no filesystem of the plan" for path in item.uncovered]
        for fault in faults:
            lines += screen.fold(f"  {printable(item.name)}: {printable(fault)}", indent="    ") + "\n"
    return lines


def _each_for_itself(applications: Sequence[Application]) -> list[Application]:
    # A run ends with the first required one that fails; a rehearsal goes on to the others.
    return [dataclasses.replace(application, required=False) for application in applications]


def _rehearsed(
    applications: Sequence[Application], records: Sequence[Any], plan: Plan, *, is_held: bool
) -> list[Rehearsed]:
    devices = {filesystem.device for filesystem in plan.filesystems}
    return [_one(item, record, devices, is_held=is_held) for item, record in zip(applications, records)]


def _one(application: Application, record: Any, devices: set[str], *, is_held: bool) -> Rehearsed:
    uncovered = [item["path"] for item in record["data"] if item["device"] not in devices]
    error = record["error"] or {}
    is_done = record["proven_at_ns"] is not None if is_held else record["ready_ns"] is not None
    return Rehearsed(
        name=record["name"],
        kind=record["kind"],
        required=application.required,
        is_good=is_done and not error and not uncovered,
        method=record["method"],
        ready_ms=_ms(0, record["ready_ns"]),
        lock_wait_ms=_ms(record["asked_at_ns"], record["quiesced_at_ns"]),
        held_ms=_ms(record["quiesced_at_ns"], record["released_at_ns"]),
        uncovered=uncovered,
        error_code=error.get("code"),
        error=error.get("message"),
    )


def _row(item: Rehearsed) -> list[Cell | str]:
    tone = Tone.GOOD if item.is_good else Tone.BAD if item.required else Tone.DOUBTFUL
    return [
        item.name,
        item.kind,
        Cell("good" if item.is_good else "failed" if item.error else "not covered", tone),
        duration_text(item.ready_ms),
        duration_text(item.lock_wait_ms),
        duration_text(item.held_ms),
        item.method or "-",
    ]


def _ms(from_ns: int | None, to_ns: int | None) -> float | None:
    return None if from_ns is None or to_ns is None else round((to_ns - from_ns) / 1e6, 3)
