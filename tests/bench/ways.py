"""The three ways to take snapshots that are compared: vmsnapshot, today's way, and the floor.

Each prepares beforehand whatever it fairly can, and does one repetition per call.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from azure.storage.blob import BlobClient

import vmsnapshot
from tests.support import processes
from tests.support.filesystems import REPOSITORY
from tests.support.mounts import assert_not_root
from tests.support.rescue import RCU_EXPEDITED, RescueThaw

# For some 10 ms after a thaw the kernel's gates stay in their slow state, in which a freeze costs little.
PAUSE_SECONDS = 0.06
RESCUE_SECONDS = 20.0
ANOTHER_RUN_LIMIT_SECONDS = 60.0


class NotThawedError(Exception):
    """Something was still frozen when it should not be. Only this fails a benchmark."""


class UnusableError(Exception):
    """A repetition did not do what it should measure."""


@dataclass(frozen=True)
class Target:
    """The filesystems and blobs of one repetition."""

    mount_points: Sequence[Path]
    uris: Sequence[str]
    ca_file: Path | None = None


@dataclass(frozen=True)
class Window:
    """One repetition: the length of the window, its instants (CLOCK_MONOTONIC), and its parts."""

    length_ms: float
    began_ns: int
    ended_ns: int
    run_began_ns: int
    parts_ms: dict[str, float]


@contextlib.contextmanager
def guard(mount_points: Sequence[Path]) -> Iterator[None]:
    """Surrounds a repetition: arms a rescue thaw, pauses, and raises an error if the rescue had to thaw."""
    for mount_point in mount_points:
        assert_not_root(mount_point)
    rescue = RescueThaw(mount_points, RESCUE_SECONDS)
    try:
        time.sleep(PAUSE_SECONDS)
        yield
    finally:
        thawed = rescue.cancel()
        if thawed:
            raise NotThawedError(f"the rescue had to thaw {', '.join(map(str, thawed))}")


def monotonic_ns(utc: str) -> int:
    """Converts an instant of a report or a status to CLOCK_MONOTONIC, exact to a microsecond."""
    instant = datetime.datetime.strptime(utc, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=datetime.timezone.utc)
    since_1970 = instant - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return since_1970 // datetime.timedelta(microseconds=1) * 1000 - (time.time_ns() - time.monotonic_ns())


def prepare(
    target: Target, *, thaw_timeout: float = 10.0, quiescers: Sequence[vmsnapshot.Application] = ()
) -> vmsnapshot.Session:
    """Prepares a run of vmsnapshot on exactly the target's filesystems."""
    plan = vmsnapshot.plan(include=[str(path) for path in target.mount_points])
    if len(plan.filesystems) != len(target.mount_points):
        raise UnusableError(f"{len(plan.filesystems)} of {len(target.mount_points)} filesystems planned")
    until = time.monotonic() + ANOTHER_RUN_LIMIT_SECONDS
    while True:
        try:
            return vmsnapshot.prepare(
                plan,
                list(target.uris),
                thaw_timeout=thaw_timeout,
                ca_file=str(target.ca_file) if target.ca_file else None,
                quiescers=quiescers,
            )
        except vmsnapshot.PrepareError as error:
            # A machine has one run at a time, and another one may be in progress or about to be cleared.
            if error.code not in ("another-run", "left-frozen") or time.monotonic() > until:
                raise
            time.sleep(0.1)


def ours(target: Target) -> Window:
    """Takes the snapshots with `vmsnapshot`."""
    with guard(target.mount_points):
        run_began_ns = time.monotonic_ns()
        session = prepare(target)
        time.sleep(PAUSE_SECONDS)
        report = session.run()
    if not report.all_thawed:
        raise NotThawedError("vmsnapshot left something frozen")
    if not report.consistent or report.window_ms is None:
        raise UnusableError(f"the run was not consistent: {report.why}")
    moments: dict[str, list[float]] = {}
    for event in report.timeline:
        moments.setdefault(event.event, []).append(event.at_ms)
    began, ended = min(moments["freeze-called"]), max(moments["thawed"])
    frozen, thawing = max(moments["freeze-returned"]), min(moments["thaw-called"])
    sent = min(moments.get("request-sent", [frozen]))
    answered = max(moments.get("request-ended", [frozen]))
    started_ns = monotonic_ns(report.started_at)
    return Window(
        length_ms=report.window_ms,
        began_ns=started_ns + int(began * 1e6),
        ended_ns=started_ns + int(ended * 1e6),
        run_began_ns=run_began_ns,
        parts_ms={
            "freeze": frozen - began,
            "to call": sent - frozen,
            "calls": answered - sent,
            "to thaw": thawing - answered,
            "thaw": ended - thawing,
        },
    )


def today(target: Target) -> Window:
    """Takes the snapshots as scripts do: fsfreeze one by one, the SDK in a thread pool, fsfreeze again."""
    clients = [
        BlobClient.from_blob_url(uri, connection_verify=str(target.ca_file) if target.ca_file else True)
        for uri in target.uris
    ]
    with guard(target.mount_points), ThreadPoolExecutor(max_workers=max(1, len(clients))) as pool:
        # Make the pool start its threads before the window.
        list(pool.map(time.sleep, [0.01] * len(clients)))
        _check_ordinary_grace_periods()
        began_ns = time.monotonic_ns()
        frozen: list[Path] = []
        try:
            for mount_point in target.mount_points:
                processes.run_bounded(["fsfreeze", "-f", mount_point])
                frozen.append(mount_point)
            frozen_ns = time.monotonic_ns()
            for call in [pool.submit(client.create_snapshot) for client in clients]:
                call.result(timeout=RESCUE_SECONDS / 2)
            called_ns = time.monotonic_ns()
        finally:
            for mount_point in frozen:
                processes.run_bounded(["fsfreeze", "-u", mount_point])
        ended_ns = time.monotonic_ns()
    for client in clients:
        client.close()
    return Window(
        length_ms=(ended_ns - began_ns) / 1e6,
        began_ns=began_ns,
        ended_ns=ended_ns,
        run_began_ns=began_ns,
        parts_ms={
            "freeze": (frozen_ns - began_ns) / 1e6,
            "calls": (called_ns - frozen_ns) / 1e6,
            "thaw": (ended_ns - called_ns) / 1e6,
        },
    )


def _check_ordinary_grace_periods() -> None:
    """Fails if expedited RCU was left on, which makes today's way seven times faster."""
    until = time.monotonic() + ANOTHER_RUN_LIMIT_SECONDS
    while RCU_EXPEDITED.exists() and RCU_EXPEDITED.read_text().strip() != "0":
        if time.monotonic() > until:
            raise UnusableError(f"{RCU_EXPEDITED} is on, and stays on: there is nothing to compare with")
        time.sleep(0.01)


class Floor:
    """The program of ``rust/engine/examples/floor.rs``: bare requests with nothing frozen, bare ioctls."""

    PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release/examples/floor"

    def __init__(self, target: Target) -> None:
        lines = [f"mount {path}" for path in target.mount_points] + [f"blob {uri}" for uri in target.uris]
        lines += [f"ca {target.ca_file}"] if target.ca_file else []
        self._process = subprocess.Popen(
            [self.PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._tell("\n".join([*lines, "go"]))

    def repeat(self) -> dict[str, float]:
        """Does one repetition. Returns the times of the requests, the freezes and the thaws."""
        time.sleep(PAUSE_SECONDS)
        self._tell("repeat")
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise UnusableError("the floor ended early")
        parts: dict[str, float] = json.loads(answer)
        return parts

    def _tell(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Floor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            # Its rescue, if it has to thaw, repeats FITHAW for ten seconds.
            self._process.wait(timeout=15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5.0)
