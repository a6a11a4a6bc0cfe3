"""Databases under load: how long the longest commit takes while the disks are snapshotted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import vmsnapshot
from tests.bench import servers
from tests.bench.comparisons import Bench, say
from tests.bench.figures import Claim, Figure, print_table
from tests.bench.ways import NotThawedError, Target, UnusableError, guard, prepare, today
from tests.support import mariadb_server, postgresql_server, processes
from tests.support.filesystems import ScratchFilesystems, scratch_directory
from tests.support.sql_writers import SqlWriter, sql_writers

CLIENTS = 8
SIZES_MIB = {"data": 320, "logs": 256, "third": 64, "fourth": 64}
# Between two backups, so that the writers are at their usual pace again.
PAUSE_SECONDS = 0.3
WAYS = ("idle", "not held", "held", "today")


def stalls(bench: Bench) -> list[Claim]:
    """Measures the longest commit during a backup: held still, not held, today's way, and without one."""
    claims: list[Claim] = []
    for name, load in (("MariaDB", _mariadb), ("PostgreSQL", _postgresql)):
        say(f"applications, {name}")
        with ExitStack() as stack:
            directory = stack.enter_context(scratch_directory())
            filesystems = stack.enter_context(ScratchFilesystems(directory))
            places = {
                place: filesystems.make_on_loop(place, size_mib=size).mount_point
                for place, size in SIZES_MIB.items()
            }
            service = stack.enter_context(
                servers.serving(servers.PARALLEL, len(places), bench.directory, bench.certificates)
            )
            target = Target(list(places.values()), service.uris, service.ca_file)
            application, writers, lock = load(stack, places)
            claims += _compare(bench, name, target, application, writers, lock)
    return claims


def _compare(
    bench: Bench,
    name: str,
    target: Target,
    application: vmsnapshot.Application,
    writers: Sequence[SqlWriter],
    lock: tuple[list[str], str] | None,
) -> list[Claim]:
    commits = {way: Figure() for way in WAYS}
    beyond_window, extra_run = Figure(), Figure()
    hook = vmsnapshot.Hook(program=str(_idle_hook(bench.directory)))
    for repetition in range(bench.repetitions + 1):
        values = {}
        began_ns = time.time_ns()
        time.sleep(PAUSE_SECONDS)
        values["idle"] = _longest(writers, began_ns)
        values["not held"], _, _ = _backup(target, writers, ())
        values["held"], held_ms, window_ms = _backup(target, writers, (application,))
        values["today"] = _today(target, writers, lock)
        without = _length_ms(target, ())
        with_hook = _length_ms(target, (hook,))
        if repetition == 0:
            continue
        for way, value in values.items():
            commits[way].add(value)
        beyond_window.add(held_ms - window_ms)
        extra_run.add(with_hook - without)
    bench.raw[f"applications/{name}"] = {way: figure.values for way, figure in commits.items()}
    print_table(
        f"Longest commit of {CLIENTS} clients of {name}, four filesystems, a server that takes 50 ms; ms, "
        f"median (p10..p90), n = {bench.repetitions}",
        [*WAYS, "held beyond the window", "run with an idle hook, longer by"],
        [[*commits.values(), beyond_window, extra_run]],
    )
    more_ms = commits["held"].median - commits["not held"].median
    return [
        Claim(f"longest commit of {name}, held more than not held", more_ms, 10, "ms"),
        Claim(f"{name} held longer than the window", beyond_window.median, 10, "ms"),
        # The keeper is another Python, which starts beside the loaded server. Nothing is held meanwhile.
        Claim(f"run with a hook that has nothing to do, longer by ({name})", extra_run.median, 100, "ms"),
    ]


def _backup(
    target: Target, writers: Sequence[SqlWriter], quiescers: Sequence[vmsnapshot.Application]
) -> tuple[float, float, float]:
    """Returns the longest commit, how long the application was held, and the window."""
    with guard(target.mount_points):
        began_ns = time.time_ns()
        with prepare(target, quiescers=quiescers) as session:
            report = session.run()
    if not report.all_thawed:
        raise NotThawedError("vmsnapshot left something frozen")
    if not report.consistent or report.window_ms is None:
        raise UnusableError(f"the run was not consistent: {report.why}")
    held_ms = report.applications[0].held_ms if quiescers else 0.0
    return _longest(writers, began_ns), held_ms or 0.0, report.window_ms


def _length_ms(target: Target, quiescers: Sequence[vmsnapshot.Application]) -> float:
    with guard(target.mount_points):
        began = time.monotonic()
        with prepare(target, quiescers=quiescers) as session:
            session.run()
            # As the command line, which prints the report now.
            return (time.monotonic() - began) * 1e3


def _today(target: Target, writers: Sequence[SqlWriter], lock: tuple[list[str], str] | None) -> float:
    """As scripts do it: a lock in an open session around `ways.today`."""
    began_ns = time.time_ns()
    if lock is None:
        today(target)
        return _longest(writers, began_ns)
    client, statement = lock
    session = subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(f"{statement}; SELECT 'locked';\n".encode())
        session.stdin.flush()
        assert session.stdout.readline() == b"locked\n"
        today(target)
    finally:
        # The lock ends with the session.
        processes.kill(session)
    return _longest(writers, began_ns)


def _longest(writers: Sequence[SqlWriter], since_ns: int) -> float:
    """Returns the longest commit that was acknowledged since then, once all writers go on."""
    time.sleep(0.1)
    lengths = [
        row.acknowledged_at_ns - row.asked_at_ns
        for writer in writers
        # The newest rows are enough, and the list grows meanwhile.
        for row in writer.rows[-5000:]
        if row.acknowledged_at_ns is not None and row.acknowledged_at_ns >= since_ns
    ]
    return max(lengths) / 1e6


def _mariadb(
    stack: ExitStack, places: dict[str, Path]
) -> tuple[vmsnapshot.Application, list[SqlWriter], tuple[list[str], str]]:
    server = stack.enter_context(mariadb_server.mariadb_server(places["data"], places["logs"]))
    server.ask("CREATE DATABASE shop; CREATE TABLE shop.orders (writer INT, number INT) ENGINE=InnoDB")
    client = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--batch", "--unbuffered"]
    client.append("--skip-column-names")
    statement = "INSERT INTO shop.orders VALUES ({writer}, {number}); SELECT {number};"
    writers = stack.enter_context(sql_writers(CLIENTS, client, statement))
    application = vmsnapshot.MariaDb(socket=str(server.socket))
    return application, writers, (client, "FLUSH TABLES WITH READ LOCK")


def _postgresql(
    stack: ExitStack, places: dict[str, Path]
) -> tuple[vmsnapshot.Application, list[SqlWriter], None]:
    server = stack.enter_context(postgresql_server.postgresql_server(places["data"], places["logs"]))
    server.ask("CREATE TABLE orders (writer int, number int)")
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    client = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", f"--host={server.directory}"]
    statement = "INSERT INTO orders VALUES ({writer}, {number});\n\\echo {number}"
    writers = stack.enter_context(sql_writers(CLIENTS, [*as_user, *client, "--dbname=postgres"], statement))
    application = vmsnapshot.PostgreSql(host=str(server.directory), linux_user="postgres")
    return application, writers, None


def _idle_hook(directory: Path) -> Path:
    """Makes a hook that has nothing to hold."""
    program = directory / "hook"
    program.write_text("#!/bin/sh\necho ready\nread -r word\necho quiesced\nread -r word outcome\n")
    program.chmod(0o755)
    return program
