"""A MariaDB server is held from before the freeze until after the thaw, and released whatever happens."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer, require
from tests.engine.conftest import Machine
from tests.engine.runs import kill, kill_with_watchdog
from tests.quiesce.conftest import application_of, children_of, keeper_of
from tests.support import processes
from tests.support.command import SnapshotRun, run_command, take_snapshot
from tests.support.fault_server import Creates, FaultServer, NeverAnswers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.freezing import is_frozen
from tests.support.mariadb_server import MariaDbServer, is_installed, mariadb_server

LOCKS = ["backup-stage", "read-lock"]


@pytest.fixture
def data(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """The filesystem of the server, with the rescue armed."""
    require(is_installed(), "needs MariaDB: see .ci/system-packages")
    filesystem = scratch.make_on_loop("data", size_mib=512)
    rescue([filesystem.mount_point])
    return filesystem


@pytest.fixture
def server(data: ScratchFilesystem) -> Iterator[MariaDbServer]:
    """A server with a table of each kind."""
    with mariadb_server(data.mount_point) as running:
        running.ask(
            "CREATE DATABASE shop; "
            "CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=InnoDB; "
            "CREATE TABLE shop.log (id INT AUTO_INCREMENT PRIMARY KEY) ENGINE=MyISAM"
        )
        yield running


@pytest.fixture
def blob(fault_server: StartFaultServer) -> FaultServer:
    """A blob service that answers at once."""
    return fault_server()


def option(server: MariaDbServer, *values: str) -> str:
    return ",".join((f"--quiesce=mariadb:socket={server.socket}", *values))


class Writers:
    """Clients that insert one row after another, each in a session of its own, until they are stopped."""

    def __init__(self, server: MariaDbServer, count: int) -> None:
        self._server = server
        self._is_stopped = threading.Event()
        self._threads = [threading.Thread(target=self._write, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends them all."""
        self._is_stopped.set()
        for thread in self._threads:
            thread.join(timeout=20)

    def _write(self) -> None:
        while not self._is_stopped.is_set():
            self._server.ask("INSERT INTO shop.orders VALUES (); INSERT INTO shop.log VALUES ()")


@pytest.mark.parametrize("lock", LOCKS)
def test_server_is_held_with_the_exact_position_of_its_binary_log(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer, lock: str
) -> None:
    writers = Writers(server, 3)
    try:
        time.sleep(0.3)
        # 100 ms in which writers would go on, if it were not for the lock and the freeze.
        blob.script("disk", Creates(after_ms=100.0))
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], option(server, f"lock={lock}"))
    finally:
        writers.stop()
    report = finished.document
    assert (finished.status, report["consistency"], report["why"]) == (0, "application", None)
    application = application_of(report)
    assert (application["outcome"], application["proof"]) == ("held", "session")
    assert (
        application["method"]
        == {
            "backup-stage": "BACKUP STAGE BLOCK_COMMIT",
            "read-lock": "FLUSH TABLES WITH READ LOCK",
        }[lock]
    )
    assert application["position_is"] == "exact"
    position = application["position"]
    assert (position["server_id"], position["binlog_file"]) == ("7", "binlog.000001")
    domain, server_id, sequence = position["gtid_binlog_pos"].split("-")
    assert (domain, server_id) == ("0", "7")
    # The position is that of an event of the log, and the next event follows it.
    rows = server.ask("SHOW BINLOG EVENTS")
    ends = [row[4] for row in rows]
    assert position["binlog_position"] in ends
    after = rows[ends.index(position["binlog_position"]) + 1]
    assert f"GTID 0-7-{int(sequence) + 1}" in " ".join(after)
    assert report["window_ms"] <= application["held_ms"] < report["window_ms"] + 100


def test_commits_and_tables_without_transactions_wait_for_the_release(
    server: MariaDbServer, scratch: ScratchFilesystems, rescue: ArmRescue, blob: FaultServer
) -> None:
    # Only the lock holds them: the filesystem of the server is not frozen.
    other = scratch.make_on_loop("other")
    rescue([other.mount_point])
    blob.script("disk", NeverAnswers())
    with SnapshotRun([other.mount_point], [blob.uri("disk")], option(server), thaw_timeout=2.0) as run:
        run.wait_until_open(blob)
        sessions = [
            server.session("INSERT INTO shop.orders VALUES ();"),
            server.session("INSERT INTO shop.log VALUES ();"),
        ]
        time.sleep(0.3)
        waiting = [row for row in server.ask("SHOW PROCESSLIST") if "backup lock" in " ".join(row)]
        assert len(waiting) == 2, server.ask("SHOW PROCESSLIST")
        finished = run.finish()
    for session in sessions:
        processes.kill(session)
    application = application_of(finished.document)
    assert (application["outcome"], application["error_code"]) == ("not-covered", "data-not-covered")
    assert str(server.data) in application["error"]
    assert finished.document["consistency"] != "application"


def test_binary_log_on_a_filesystem_that_is_not_frozen_is_named(
    data: ScratchFilesystem, scratch: ScratchFilesystems, rescue: ArmRescue, blob: FaultServer
) -> None:
    logs = scratch.make_on_loop("logs", size_mib=128)
    rescue([logs.mount_point])
    with mariadb_server(data.mount_point, logs.mount_point) as server:
        for mounts, outcome in (
            ([data.mount_point], "not-covered"),
            ([data.mount_point, logs.mount_point], "held"),
        ):
            finished = take_snapshot(mounts, [blob.uri("disk")], option(server))
            application = application_of(finished.document)
            assert application["outcome"] == outcome
            assert finished.status == int(outcome != "held")
            if outcome != "held":
                assert f"`{logs.mount_point}/binlog`" in finished.document["why"]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("how", ["KILL", "the client"])
def test_session_that_ends_within_the_window_is_never_called_held(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer, lock: str, how: str
) -> None:
    for _ in range(5):
        blob.script("disk", Creates(after_ms=200.0))
        blob.forget_requests()
        with SnapshotRun([data.mount_point], [blob.uri("disk")], option(server, f"lock={lock}")) as run:
            run.wait_until_open(blob)
            time.sleep(random.uniform(0.0, 0.15))  # noqa: S311 (no secret)
            (client,) = children_of(keeper_of(run.process.pid))
            if how == "KILL":
                rows = server.ask("SHOW PROCESSLIST")
                idle = [row[0] for row in rows if row[4] == "Sleep"]
                for number in idle:
                    server.ask(f"KILL {number}")
                assert idle
            else:
                os.kill(client, signal.SIGKILL)
            finished = run.finish()
        application = application_of(finished.document)
        assert (application["outcome"], application["error_code"]) == ("lost", "session-lost")
        assert (finished.status, finished.document["consistency"]) == (1, "filesystem")


def test_statement_that_is_killed_does_not_end_the_hold(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    blob.script("disk", Creates(after_ms=300.0))
    with SnapshotRun([data.mount_point], [blob.uri("disk")], option(server)) as run:
        run.wait_until_open(blob)
        for row in server.ask("SHOW PROCESSLIST"):
            if row[4] == "Sleep":
                server.ask(f"KILL QUERY {row[0]}")
        finished = run.finish()
    assert (finished.status, finished.document["consistency"]) == (0, "application")


def test_read_lock_is_not_asked_for_behind_a_long_statement(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    long = server.session("SELECT SLEEP(30) FROM shop.orders UNION SELECT SLEEP(30);")
    try:
        time.sleep(2.2)
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], option(server, "lock=read-lock"))
        assert (finished.status, finished.error_code) == (1, "long-statement")
        assert "has run for 2" in finished.errors
        assert not [row for row in server.ask("SHOW PROCESSLIST") if "FLUSH TABLES" in " ".join(row)]
        # The other lock does not wait for readers.
        assert take_snapshot([data.mount_point], [blob.uri("disk")], option(server)).status == 0
    finally:
        processes.kill(long)


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("is_required", [True, False])
def test_lock_that_is_not_got_in_time_is_given_up(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer, lock: str, is_required: bool
) -> None:
    holder = server.session("LOCK TABLES shop.log WRITE;")
    try:
        time.sleep(0.3)
        values = [f"lock={lock}", "wait=1.5", *([] if is_required else ["optional"])]
        began = time.monotonic()
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], option(server, *values))
        assert time.monotonic() - began < 5
    finally:
        processes.kill(holder)
    if is_required:
        assert (finished.status, finished.error_code) == (1, "lock-timeout")
        assert blob.requests() == []
    else:
        application = application_of(finished.document)
        assert (application["outcome"], application["error_code"]) == ("not-quiesced", "lock-timeout")
        assert (finished.status, finished.document["consistency"]) == (0, "filesystem")
    # Nobody waits any more.
    server.ask("INSERT INTO shop.log VALUES ()", limit_seconds=2.0)


def test_server_is_released_if_run_watchdog_and_keeper_are_killed(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    before = server.ask("SELECT @@GLOBAL.read_only")
    blob.script("disk", NeverAnswers())
    with SnapshotRun([data.mount_point], [blob.uri("disk")], option(server), thaw_timeout=20.0) as run:
        run.wait_until_open(blob)
        kill(keeper_of(run.process.pid))
        kill_with_watchdog(run)
    assert is_frozen(data.mount_point)
    assert run_command("thaw").status == 0
    thawed_at = time.monotonic()
    server.ask("INSERT INTO shop.orders VALUES (); INSERT INTO shop.log VALUES ()", limit_seconds=5.0)
    assert time.monotonic() - thawed_at < 1.0
    assert server.ask("SELECT @@GLOBAL.read_only") == before


def test_run_that_is_killed_leaves_no_lock(machine: Machine, server: MariaDbServer) -> None:
    with machine.open_window(option(server), thaw_timeout=10.0) as run:
        killed_at = time.monotonic()
        run.send(signal.SIGKILL)
        server.ask("INSERT INTO shop.orders VALUES ()", limit_seconds=5.0)
        assert time.monotonic() - killed_at < 1.0


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (["user=nobody-knows"], "access-denied"),
        (["user=weak"], "no-privilege"),
        (["defaults_file=/missing.cnf"], "bad-defaults"),
        (["linux_user=nobody-knows"], "no-user"),
        (["socket=/missing.sock"], "no-server"),
    ],
)
def test_what_a_server_refuses_is_named_before_the_freeze(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer, values: list[str], code: str
) -> None:
    server.ask("CREATE USER weak@localhost IDENTIFIED BY ''")
    named = values if code == "no-server" else [f"socket={server.socket}", *values]
    finished = take_snapshot([data.mount_point], [blob.uri("disk")], f"--quiesce=mariadb:{','.join(named)}")
    assert (finished.status, finished.error_code) == (1, code)
    assert "application `mariadb`" in finished.errors
    assert blob.requests() == []


def test_password_of_a_defaults_file_is_nowhere(
    server: MariaDbServer, data: ScratchFilesystem, blob: FaultServer, tmp_path: Path
) -> None:
    password = secrets.token_hex(8)
    server.ask(f"CREATE USER backup@localhost IDENTIFIED BY '{password}'")
    server.ask("GRANT RELOAD, PROCESS, BINLOG MONITOR ON *.* TO backup@localhost")
    defaults = tmp_path / "backup.cnf"
    defaults.touch(mode=0o600)
    defaults.write_text(f"[client]\nuser=backup\npassword={password}\n")
    blob.script("disk", Creates(after_ms=300.0))
    named = option(server, f"defaults_file={defaults}")
    with SnapshotRun([data.mount_point], [blob.uri("disk")], named) as run:
        run.wait_until_open(blob)
        keeper = keeper_of(run.process.pid)
        for pid in (run.process.pid, keeper, *children_of(keeper)):
            for name in ("cmdline", "environ"):
                assert password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        finished = run.finish()
    assert finished.document["consistency"] == "application"
    assert password not in finished.output + finished.errors


def test_server_that_never_answers_costs_only_its_time_limit(
    data: ScratchFilesystem, blob: FaultServer, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        path = tmp_path / "silent.sock"
        listener.bind(str(path))
        listener.listen()
        began = time.monotonic()
        named = f"--quiesce=mariadb:socket={path},ready=1"
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], named)
        assert time.monotonic() - began < 6
    assert (finished.status, finished.error_code) == (1, "timed-out")


def test_rehearsal_shows_what_is_not_covered(server: MariaDbServer, data: ScratchFilesystem) -> None:
    name = f"mariadb:socket={server.socket}"
    for mount, is_good in ((f"mount={data.mount_point}", True), ("mount=/proc-is-none", None)):
        finished = run_command("quiesce", "check", "--json", name, f"--mount={mount}")
        if is_good is None:
            assert finished.status == 2
            continue
        (application,) = finished.document["applications"]
        assert (finished.status, application["is_good"]) == (0, is_good)
