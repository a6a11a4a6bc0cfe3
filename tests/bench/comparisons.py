"""The measurements. Each function prints its tables and returns its claims with the figures.

Alternatives are measured in turns within one run, because the machine's speed changes over minutes.
Figures are medians with the 10th and 90th percentiles.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vmsnapshot
from tests.bench import servers
from tests.bench.figures import Claim, Figure, print_table
from tests.bench.ways import (
    PAUSE_SECONDS,
    Floor,
    NotThawedError,
    Target,
    UnusableError,
    Window,
    guard,
    monotonic_ns,
    ours,
    today,
)
from tests.support import processes
from tests.support.certificates import Certificates
from tests.support.filesystems import ScratchFilesystem
from tests.support.writers import Writer, writing

WINDOW_FACTOR = 1.25
GROWTH_FACTOR = 1.15
STALL_FACTORS = {
    (servers.AZURITE_HTTP, 1): 15.0,
    (servers.AZURITE_HTTP, 16): 30.0,
    (servers.PARALLEL, 64): 40.0,
}
STALL_WITHOUT_BLOBS_MS = 3.0
DIRTY_MIB = 64
DIRTY_COUNT = 16
DIRTY_EXTRA_MS = 5.0
WATCHDOG_MS = 5.0
WRITE_INTERVAL_NS = 1_000_000
WATCHDOG_PEAK_MIB = 12.0


@dataclass(frozen=True)
class Bench:
    """What every benchmark uses."""

    directory: Path
    filesystems: Sequence[ScratchFilesystem]
    certificates: Certificates
    counts: Sequence[int]
    repetitions: int
    raw: dict[str, Any]
    """The content of the JSON file: every repetition."""

    def mount_points(self, count: int) -> list[Path]:
        """Returns the first ``count`` of them."""
        return [filesystem.mount_point for filesystem in self.filesystems[:count]]


def say(text: str) -> None:
    """Prints the progress of the benchmark."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def windows(bench: Bench, kind: str) -> list[Claim]:
    """Measures the window of vmsnapshot, today's way, and the floor, without writers, on one blob service."""
    claims: list[Claim] = []
    rows, parts_rows = [], []
    medians: dict[int, float] = {}
    for count in bench.counts:
        say(f"window, {kind}, N = {count}")
        ways = {name: Figure() for name in ("ours", "today", "floor", "ratio")}
        parts: dict[str, Figure] = {}
        with servers.serving(kind, count, bench.directory, bench.certificates) as service:
            target = Target(bench.mount_points(count), service.uris, service.ca_file)
            with Floor(target) as floor:
                # The first round warms up and is not counted.
                for repetition in range(bench.repetitions + 1):
                    # The order changes, because each way affects the next one through caches and Azurite.
                    if repetition % 2:
                        our_window, least, their_window = ours(target), floor.repeat(), today(target)
                    else:
                        least, our_window, their_window = floor.repeat(), ours(target), today(target)
                    if repetition == 0:
                        continue
                    ways["ours"].add(our_window.length_ms)
                    ways["today"].add(their_window.length_ms)
                    ways["floor"].add(sum(least.values()))
                    ways["ratio"].add(our_window.length_ms / sum(least.values()))
                    for name, length_ms in our_window.parts_ms.items():
                        parts.setdefault(name, Figure()).add(length_ms)
                    for name, length_ms in least.items():
                        parts.setdefault(f"floor {name.removesuffix('_ms')}", Figure()).add(length_ms)
        bench.raw[f"window/{kind}/{count}"] = {
            **{name: figure.values for name, figure in ways.items()},
            "parts": {name: figure.values for name, figure in parts.items()},
        }
        medians[count] = ways["ours"].median
        over_floor = ways["ours"].median / ways["floor"].median
        times_shorter = ways["today"].median / ways["ours"].median
        rows.append(
            [
                *(count, ways["ours"], ways["today"], ways["floor"]),
                *(f"{over_floor:.2f}", ways["ratio"], f"{times_shorter:.0f}"),
            ]
        )
        parts_rows.append([count, *parts.values()])
        parts_columns = list(parts)
        text = f"window / floor, {servers.NAMES[kind]}, N = {count}"
        claims.append(Claim(text, over_floor, WINDOW_FACTOR, "times"))
    print_table(
        f"Window on {servers.NAMES[kind]}, no writers; ms, median (p10..p90), n = {bench.repetitions}",
        ["N", "ours", "today (a)", "floor (b)", "ours/floor", "of pairs", "today/ours"],
        rows,
    )
    print_table("  where the time goes; ms", ["N", *parts_columns], parts_rows)
    if kind == servers.PARALLEL and {1, 64} <= set(medians):
        growth = medians[64] / medians[1]
        claims.append(Claim("window at N = 64 / at N = 1, parallel server", growth, GROWTH_FACTOR, "times"))
    return claims


def stalls(bench: Bench, kind: str) -> list[Claim]:
    """Measures the longest stall of a writer: vmsnapshot, today's way, and nothing frozen at all."""
    claims, rows = [], []
    # Today's way takes seconds. A few repetitions show a factor of tens.
    repetitions = max(3, bench.repetitions * 2 // 3)
    for count in bench.counts:
        say(f"stalls, {kind}, N = {count}")
        names = ("ours", "ours, whole run", "today", "nothing frozen", "window")
        figures = {name: Figure() for name in names}
        with servers.serving(kind, count, bench.directory, bench.certificates) as service:
            target = Target(bench.mount_points(count), service.uris, service.ca_file)
            with writing(_sample(target.mount_points)) as writers:
                for repetition in range(repetitions + 1):
                    our_window = ours(target)
                    longest, longest_of_run = (
                        _longest(writers, our_window),
                        _longest_of_run(writers, our_window),
                    )
                    quiet = _quiet_stretch(writers, our_window.length_ms)
                    their_window = today(target)
                    theirs = _longest(writers, their_window)
                    if repetition == 0:
                        continue
                    values = (longest, longest_of_run, theirs, quiet, our_window.length_ms)
                    for name, value in zip(names, values):
                        figures[name].add(value)
        bench.raw[f"stalls/{kind}/{count}"] = {name: figure.values for name, figure in figures.items()}
        factor = figures["today"].median / figures["ours"].median
        rows.append([count, *figures.values(), f"{factor:.0f}"])
        if (kind, count) in STALL_FACTORS:
            claims.append(
                Claim(
                    f"today's longest stall / ours, {servers.NAMES[kind]}, N = {count}",
                    factor,
                    STALL_FACTORS[(kind, count)],
                    "times",
                    is_minimum=True,
                )
            )
    print_table(
        f"Longest stall of a writer on {servers.NAMES[kind]}; ms, median (p10..p90), n = {repetitions}",
        ["N", *names, "today/ours"],
        rows,
    )
    return claims


def nothing_to_call(bench: Bench) -> list[Claim]:
    """Measures window and longest stall without blobs: the cost of freeze and thaw alone."""
    claims, rows = [], []
    for count in bench.counts:
        say(f"no blobs, N = {count}")
        names = ("stall", "nothing frozen", "stall, whole run", "window", "window, no writers")
        figures = {name: Figure() for name in names}
        target = Target(bench.mount_points(count), [])
        # These repetitions are short, so there are more.
        for repetition in range(2 * bench.repetitions + 1):
            with writing(_sample(target.mount_points)) as writers:
                window = ours(target)
                values = [_longest(writers, window), _quiet_stretch(writers, window.length_ms)]
                values += [_longest_of_run(writers, window), window.length_ms]
            values.append(ours(target).length_ms)
            if repetition:
                for name, value in zip(names, values):
                    figures[name].add(value)
        bench.raw[f"no-blobs/{count}"] = {name: figure.values for name, figure in figures.items()}
        rows.append([count, *figures.values()])
        text = f"longest stall without blobs, N = {count}"
        claims.append(Claim(text, figures["stall"].median, STALL_WITHOUT_BLOBS_MS, "ms"))
    print_table(f"Without blobs; ms, median (p10..p90), n = {2 * bench.repetitions}", ["N", *names], rows)
    return claims


def dirty(bench: Bench) -> list[Claim]:
    """Measures the window over filesystems with much dirty data, compared with clean ones."""
    if len(bench.filesystems) < DIRTY_COUNT:
        return []
    target = Target(bench.mount_points(DIRTY_COUNT), [])
    clean_figure, dirty_figure = Figure(), Figure()
    block = os.urandom(1024 * 1024)
    for repetition in range(max(2, bench.repetitions // 2) + 1):
        say(f"dirty data, repetition {repetition}")
        clean_ms = ours(target).length_ms
        for mount_point in target.mount_points:
            with (mount_point / "dirty.data").open("r+b" if repetition else "w+b") as file:
                for _ in range(DIRTY_MIB):
                    file.write(block)
        dirty_ms = ours(target).length_ms
        if repetition:
            clean_figure.add(clean_ms)
            dirty_figure.add(dirty_ms)
    bench.raw["dirty"] = {"clean": clean_figure.values, "dirty": dirty_figure.values}
    print_table(
        f"{DIRTY_MIB} MiB dirty on each of {DIRTY_COUNT} filesystems, no blobs; window in ms, "
        f"median (p10..p90), n = {len(clean_figure.values)}",
        ["clean", "dirty"],
        [[clean_figure, dirty_figure]],
    )
    more_ms = dirty_figure.median - clean_figure.median
    return [Claim("window over dirty filesystems, more than over clean ones", more_ms, DIRTY_EXTRA_MS, "ms")]


def watchdog(bench: Bench) -> list[Claim]:
    """Measures how soon the watchdog has thawed everything after a SIGKILL, and after its deadline."""
    claims, rows = [], []
    for count in [number for number in bench.counts if number in (1, 16, 64)]:
        mount_points = bench.mount_points(count)
        for name, event in (("SIGKILL", _killed), ("deadline", _stopped)):
            say(f"watchdog, {name}, N = {count}")
            thawed, resumed = Figure(), Figure()
            for _ in range(bench.repetitions):
                with writing(_sample(mount_points)[:1]) as (writer,), guard(mount_points):
                    from_ns, thawed_ns = event(mount_points)
                    processes.reap()
                    thawed.add((thawed_ns - from_ns) / 1e6)
                    # The end of the write that was stuck is the moment at which the writer resumed.
                    writer.wait_until_writing(writes=2)
                    stuck = [stall for stall in writer.stalls(since_ns=from_ns) if stall.start_ns < from_ns]
                    if not stuck:
                        raise UnusableError("the writer was not stuck: nothing was frozen")
                    resumed.add((stuck[0].start_ns - from_ns) / 1e6 + stuck[0].length_ms)
            bench.raw[f"watchdog/{name}/{count}"] = {"thawed": thawed.values, "resumed": resumed.values}
            rows.append([name, count, thawed, resumed])
            claims.append(Claim(f"all thawed after {name}, N = {count}", thawed.median, WATCHDOG_MS, "ms"))
    print_table(
        "Watchdog: from the event to all thawed (ledger), and to a writer's resumption; ms, "
        f"median (p10..p90), n = {bench.repetitions}",
        ["event", "N", "thawed", "resumed"],
        rows,
    )
    return claims


def memory(bench: Bench) -> list[Claim]:
    """Measures the peak memory of the command and of its watchdog over HTTPS, which needs the most."""
    claims, rows = [], []
    for count in bench.counts:
        say(f"memory, N = {count}")
        with servers.serving(servers.AZURITE_HTTPS, count, bench.directory, bench.certificates) as service:
            run_kib, watchdog_kib = _peaks(Target(bench.mount_points(count), service.uris, service.ca_file))
        bench.raw[f"memory/{count}"] = {"run_kib": run_kib, "watchdog_kib": watchdog_kib}
        rows.append([count, f"{run_kib / 1024:.1f}", f"{watchdog_kib / 1024:.1f}"])
        text = f"peak memory of the watchdog, N = {count}"
        claims.append(Claim(text, watchdog_kib / 1024, WATCHDOG_PEAK_MIB, "MiB"))
    title = "Peak memory (VmHWM), `vmsnapshot snapshot` over HTTPS; MiB"
    print_table(title, ["N", "command", "watchdog"], rows)
    return claims


def _sample(mount_points: Sequence[Path]) -> list[Path]:
    """Picks the first, the middle and the last: 64 writers would keep two cores busy with nothing frozen."""
    return list(dict.fromkeys([mount_points[0], mount_points[len(mount_points) // 2], mount_points[-1]]))


def _longest(writers: Sequence[Writer], window: Window) -> float:
    """Returns the longest write during the window."""
    return _longest_between(writers, window.began_ns, window.ended_ns)


def _longest_of_run(writers: Sequence[Writer], window: Window) -> float:
    """Returns the longest write since the beginning of the preparation."""
    return _longest_between(writers, window.run_began_ns, window.ended_ns)


def _quiet_stretch(writers: Sequence[Writer], length_ms: float) -> float:
    """Returns the longest write in a time as long as the window, with nothing frozen."""
    time.sleep(PAUSE_SECONDS)
    began_ns = time.monotonic_ns()
    time.sleep(length_ms / 1e3)
    return _longest_between(writers, began_ns, time.monotonic_ns())


def _longest_between(writers: Sequence[Writer], began_ns: int, ended_ns: int) -> float:
    # By then a write that was stuck has ended. One that is still in progress counts with its length so far.
    time.sleep(0.01)
    # A window of 0.1 ms may fall between two writes, so those before and after it count too.
    began_ns, ended_ns = began_ns - WRITE_INTERVAL_NS, ended_ns + WRITE_INTERVAL_NS
    return max(
        (
            stall.length_ms
            for writer in writers
            for stall in writer.stalls(since_ns=began_ns)
            if stall.start_ns <= ended_ns
        ),
        default=0.0,
    )


_RUN = """
import sys
import vmsnapshot
timeout, uri, *mount_points = sys.argv[1:]
plan = vmsnapshot.plan(include=mount_points)
session = vmsnapshot.prepare(plan, [uri], thaw_timeout=float(timeout))
session.run()
"""


def _killed(mount_points: Sequence[Path]) -> tuple[int, int]:
    """Kills a run in its window. Returns when that was, and when the last filesystem was thawed."""
    with _silent_server() as uri:
        run = _start_run(mount_points, uri, thaw_timeout_seconds=10.0)
        try:
            _wait_for_status(run.pid, is_all_frozen)
            time.sleep(PAUSE_SECONDS)
            killed_ns = time.monotonic_ns()
            run.kill()
            status = _wait_for_status(run.pid, is_all_thawed)
        finally:
            processes.kill(run)
    return killed_ns, _last_thaw_ns(status)


def _stopped(mount_points: Sequence[Path]) -> tuple[int, int]:
    """Stops a run (SIGSTOP) in its window. Returns its deadline, and when the last filesystem was thawed."""
    thaw_timeout_seconds = 0.5
    with _silent_server() as uri:
        run = _start_run(mount_points, uri, thaw_timeout_seconds=thaw_timeout_seconds)
        try:
            _wait_for_status(run.pid, is_all_frozen)
            run.send_signal(signal.SIGSTOP)
            status = _wait_for_status(run.pid, is_all_thawed)
        finally:
            processes.kill(run)
    deadline_ns = monotonic_ns(status.started_at) + int(thaw_timeout_seconds * 1e9)
    return deadline_ns, _last_thaw_ns(status)


@contextlib.contextmanager
def _silent_server() -> Iterator[str]:
    # The kernel makes the connections. No program accepts, reads or answers.
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield servers.sas_uri(listener.getsockname()[1], "disk")


def _start_run(
    mount_points: Sequence[Path], uri: str, *, thaw_timeout_seconds: float
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(thaw_timeout_seconds), uri, *map(str, mount_points)],
        stdin=subprocess.DEVNULL,
    )


def is_all_frozen(run: Any) -> bool:
    """Returns whether every filesystem of a run is frozen, by its status."""
    return all(filesystem.state == "frozen" for filesystem in run.filesystems)


def is_all_thawed(run: Any) -> bool:
    """Returns whether every filesystem of a run is thawed, by its status."""
    return all(filesystem.thawed_at for filesystem in run.filesystems)


def _wait_for_status(pid: int, is_reached: Any, *, limit_seconds: float = 15.0) -> Any:
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        for run in vmsnapshot.status().runs:
            if run.pid == pid and is_reached(run):
                return run
        time.sleep(0.005)
    raise NotThawedError(f"the run of process {pid} did not come to {is_reached.__name__}")


def _last_thaw_ns(run: Any) -> int:
    return max(monotonic_ns(filesystem.thawed_at) for filesystem in run.filesystems)


_COMMAND = """
import sys
from vmsnapshot import cli
try:
    cli.main(sys.argv[1:])
except SystemExit:
    pass
status = open("/proc/self/status").read()
print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""


def _peaks(target: Target) -> tuple[float, float]:
    """Runs the command as users do. Returns the peaks of the command and of its watchdog, in KiB."""
    with tempfile.TemporaryDirectory() as scratch, guard(target.mount_points):
        report = Path(scratch) / "report.json"
        blobs = Path(scratch) / "blobs"
        blobs.touch(mode=0o600)
        blobs.write_text("\n".join(target.uris))
        arguments = ["snapshot", "--blobs-from", blobs, "--report", report, "--ca-file", target.ca_file]
        for mount_point in target.mount_points:
            arguments += ["--mount", mount_point]
        command = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, errors = command.communicate(timeout=60.0)
        told = json.loads(report.read_text())
    if not told["consistent"]:
        raise UnusableError(f"the run was not consistent: {told['why']}")
    return float(errors.split()[-1]), float(told["watchdog"]["peak_memory_kib"])
