"""Databases under load are restored from the snapshots, with all that was acknowledged and nothing later.

Each test is also run in a way that must fail: without the common freeze, and without the lock.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ArmRescue, require
from tests.quiesce.conftest import application_of
from tests.support.command import take_snapshot
from tests.support.copying_service import CopyingService, copying_service
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.mariadb_server import MariaDbServer, is_installed, mariadb_server
from tests.support.postgresql_server import PostgreSqlServer, postgresql_server, programs
from tests.support.sql_writers import SqlWriter, assert_rows_of_a_moment, sql_writers

# `make restores` makes more.
ROUNDS = int(os.environ.get("VMSNAPSHOT_RESTORES", "20"))
LIMIT_SECONDS = 60 + 5 * ROUNDS
WRITERS = 3
# Between the clocks of the report and of the writers.
CLOCK_NS = 5_000_000

ROWS = "SELECT writer, number FROM {} ORDER BY writer, number"
INSERT = "INSERT INTO {} VALUES ({{writer}}, {{number}}); "
TABLES = {"orders": "InnoDB", "log": "MyISAM", "pages": "Aria"}
CHECK = "CHECK TABLE " + ", ".join(f"shop.{table}" for table in TABLES)


@dataclass
class Disks:
    """The filesystems of a server, the service that copies them, and where copies are mounted."""

    scratch: ScratchFilesystems
    filesystems: dict[str, ScratchFilesystem]
    service: CopyingService

    @property
    def mount_points(self) -> list[Path]:
        return [filesystem.mount_point for filesystem in self.filesystems.values()]

    @contextmanager
    def restored(self) -> Iterator[dict[str, ScratchFilesystem]]:
        """Mounts the newest copies."""
        copies = {
            name: self.scratch.mount_copy(f"restored-{name}", image)
            for name, image in self.service.copies.items()
        }
        try:
            yield copies
        finally:
            for copy in copies.values():
                self.scratch.unmount(copy)
            self.service.forget_copies()


@contextmanager
def disks(
    scratch: ScratchFilesystems, rescue: ArmRescue, delays_ms: dict[str, float], sizes_mib: dict[str, int]
) -> Iterator[Disks]:
    made = {name: scratch.make_on_loop(name, size_mib=sizes_mib[name]) for name in delays_ms}
    rescue([filesystem.mount_point for filesystem in made.values()], after_seconds=50)
    images = {name: filesystem.image for name, filesystem in made.items() if filesystem.image}
    with copying_service(images, delays_ms, scratch.directory) as service:
        yield Disks(scratch, made, service)


def instants_ns(report: Any) -> tuple[int, int]:
    """Returns when the application was asked to hold still and when it was released, as `time.time_ns`."""
    started = datetime.datetime.strptime(report["started_at"], "%Y-%m-%dT%H:%M:%S.%fZ")
    started_ns = round(started.replace(tzinfo=datetime.timezone.utc).timestamp() * 1e6) * 1000
    at_ms = {event["event"]: event["at_ms"] for event in report["timeline"]}
    lock_wait_ms = application_of(report)["lock_wait_ms"]
    held = started_ns + round((at_ms["application-quiesced"] - lock_wait_ms) * 1e6) - CLOCK_NS
    released = started_ns + round(at_ms["application-released"] * 1e6) + CLOCK_NS
    return held, released


def lsn(text: str) -> int:
    """Returns a position of PostgreSQL's log as a number."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def by_writer(rows: list[list[str]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for writer, number in rows:
        found.setdefault(int(writer), []).append(int(number))
    return found


@pytest.fixture
def mariadb(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> Iterator[tuple[Disks, MariaDbServer, list[SqlWriter]]]:
    """A server under load whose binary log lies on a disk of its own."""
    require(is_installed(), "needs MariaDB: see .ci/system-packages")
    with ExitStack() as stack:
        made = stack.enter_context(
            disks(scratch, rescue, {"data": 0.0, "logs": 150.0}, {"data": 256, "logs": 128})
        )
        data, logs = made.mount_points
        server = stack.enter_context(mariadb_server(data, logs))
        server.ask("CREATE DATABASE shop")
        for table, engine in TABLES.items():
            server.ask(f"CREATE TABLE shop.{table} (writer INT, number INT) ENGINE={engine}")
        inserts = "".join(INSERT.format(f"shop.{table}") for table in TABLES)
        client = ["mariadb", "--no-defaults", f"--socket={server.socket}", "--batch", "--unbuffered"]
        writers = stack.enter_context(
            sql_writers(WRITERS, [*client, "--skip-column-names"], f"{inserts}SELECT {{number}};")
        )
        time.sleep(0.5)
        yield made, server, writers


def assert_restored_mariadb(
    made: Disks, writers: list[SqlWriter], report: Any, position: dict[str, str]
) -> None:
    """Starts a server from the copies, and checks it."""
    with made.restored() as copies, ExitStack() as stack:
        restored = MariaDbServer(copies["data"].mount_point, copies["logs"].mount_point)
        stack.callback(restored.kill)
        # Before anything else touches them.
        rows = restored.ask(CHECK)
        assert [row[2:] for row in rows] == [["status", "OK"]] * len(TABLES), rows
        assert "repair" not in restored.errors.read_text().lower()
        assert restored.ask("SELECT @@gtid_binlog_pos") == [[position["gtid_binlog_pos"]]]
        held_at_ns, released_at_ns = instants_ns(report)
        count = 0
        for table in TABLES:
            found = by_writer(restored.ask(ROWS.format(f"shop.{table}")))
            count += sum(len(numbers) for numbers in found.values())
            assert_rows_of_a_moment(writers, found, held_at_ns=held_at_ns, released_at_ns=released_at_ns)
        # Every row is a transaction of the log, and the log has none besides but those that made the tables.
        assert int(position["gtid_binlog_pos"].rpartition("-")[2]) == count + 1 + len(TABLES)


@pytest.mark.timeout(LIMIT_SECONDS)
def test_mariadb_is_restored_exactly_as_it_was_held(
    mariadb: tuple[Disks, MariaDbServer, list[SqlWriter]],
) -> None:
    made, server, writers = mariadb
    for _ in range(ROUNDS):
        finished = take_snapshot(
            made.mount_points, made.service.uris(), f"--quiesce=mariadb:socket={server.socket}"
        )
        assert finished.document["consistency"] == "application", finished.document["why"]
        application = application_of(finished.document)
        assert application["position_is"] == "exact"
        assert_restored_mariadb(made, writers, finished.document, application["position"])


def test_mariadb_without_the_lock_is_not(mariadb: tuple[Disks, MariaDbServer, list[SqlWriter]]) -> None:
    made, _, _ = mariadb
    finished = take_snapshot(made.mount_points, made.service.uris())
    assert finished.document["consistency"] == "filesystem"
    with made.restored() as copies, ExitStack() as stack:
        restored = MariaDbServer(copies["data"].mount_point, copies["logs"].mount_point)
        stack.callback(restored.kill)
        rows = restored.ask(CHECK)
        assert any(row[2] != "status" for row in rows), (
            "a table without transactions was at rest without a lock"
        )


def test_mariadb_without_the_common_freeze_is_not(
    mariadb: tuple[Disks, MariaDbServer, list[SqlWriter]],
) -> None:
    made, server, writers = mariadb
    # The newest report stands for what such a program would say.
    finished = take_snapshot(
        made.mount_points, made.service.uris(), f"--quiesce=mariadb:socket={server.socket}"
    )
    made.service.forget_copies()
    made.service.snapshot_without_a_freeze()
    ((position,),) = server.ask("SELECT @@gtid_binlog_pos")
    with pytest.raises(AssertionError):
        assert_restored_mariadb(made, writers, finished.document, {"gtid_binlog_pos": position})


@pytest.fixture
def postgresql(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> Iterator[tuple[Disks, PostgreSqlServer, list[SqlWriter]]]:
    """A server under load whose WAL and one tablespace lie on disks of their own."""
    require(programs() is not None, "needs PostgreSQL: see .ci/system-packages")
    with ExitStack() as stack:
        made = stack.enter_context(
            disks(
                scratch,
                rescue,
                {"wal": 0.0, "data": 200.0, "extra": 100.0},
                {"wal": 256, "data": 256, "extra": 64},
            )
        )
        places = {name: filesystem.mount_point for name, filesystem in made.filesystems.items()}
        server = stack.enter_context(
            postgresql_server(places["data"], places["wal"], {"fast": places["extra"]})
        )
        server.ask("CREATE TABLE orders (writer int, number int)")
        server.ask("CREATE TABLE pages (writer int, number int) TABLESPACE fast")
        inserts = "".join(INSERT.format(table) for table in ("orders", "pages"))
        client = [
            "psql",
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
            f"--host={server.directory}",
        ]
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        writers = stack.enter_context(
            sql_writers(
                WRITERS,
                [*as_user, *client, "--dbname=postgres"],
                f"BEGIN; {inserts}COMMIT;\n\\echo {{number}}",
            )
        )
        time.sleep(0.5)
        yield made, server, writers


def assert_restored_postgresql(made: Disks, writers: list[SqlWriter], report: Any) -> None:
    """Starts a server from the copies, and checks it."""
    with made.restored() as copies, ExitStack() as stack:
        data = copies["data"].mount_point
        (link,) = (data / "pg/pg_tblspc").iterdir()
        link.unlink()
        link.symlink_to(copies["extra"].mount_point / "fast")
        restored = PostgreSqlServer(data, copies["wal"].mount_point)
        stack.callback(restored.kill)
        held_at_ns, released_at_ns = instants_ns(report)
        for table in ("orders", "pages"):
            rows = restored.ask(ROWS.format(table))
            assert_rows_of_a_moment(
                writers, by_writer(rows), held_at_ns=held_at_ns, released_at_ns=released_at_ns
            )
        recorded = application_of(report)["position"]
        ((at, identifier),) = restored.ask(
            "SELECT pg_current_wal_insert_lsn(), system_identifier FROM pg_control_system()"
        )
        assert identifier == recorded["system_identifier"]
        assert lsn(at) >= lsn(recorded["lsn"])


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("mode", ["no", "yes"])
def test_postgresql_is_restored_with_all_that_it_had_acknowledged(
    postgresql: tuple[Disks, PostgreSqlServer, list[SqlWriter]], mode: str
) -> None:
    made, server, writers = postgresql
    named = f"--quiesce=postgresql:host={server.directory},linux_user=postgres,backup_mode={mode}"
    for _ in range(ROUNDS // 2):
        finished = take_snapshot(made.mount_points, made.service.uris(), named)
        assert finished.document["consistency"] == "application", finished.document["why"]
        assert application_of(finished.document)["position_is"] == "lower-bound"
        assert_restored_postgresql(made, writers, finished.document)


def test_postgresql_without_the_common_freeze_is_not(
    postgresql: tuple[Disks, PostgreSqlServer, list[SqlWriter]],
) -> None:
    made, server, writers = postgresql
    named = f"--quiesce=postgresql:host={server.directory},linux_user=postgres"
    finished = take_snapshot(made.mount_points, made.service.uris(), named)
    made.service.forget_copies()
    # The disk of the data is copied after the WAL's, so it may name a checkpoint that its WAL does not have.
    made.service.copy("wal")
    server.ask("CHECKPOINT")
    made.service.copy("extra")
    made.service.copy("data")
    with pytest.raises(AssertionError):
        assert_restored_postgresql(made, writers, finished.document)
