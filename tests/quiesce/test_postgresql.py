"""A PostgreSQL server's position is noted before the freeze, and its session proves that it is the same."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ArmRescue, StartFaultServer, require
from tests.engine.runs import kill
from tests.quiesce.conftest import application_of, children_of, keeper_of
from tests.support.command import SnapshotRun, take_snapshot
from tests.support.fault_server import Creates, FaultServer, NeverAnswers
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems
from tests.support.postgresql_server import PostgreSqlServer, postgresql_server, programs


@pytest.fixture
def data(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """The filesystem of the server, with the rescue armed."""
    require(programs() is not None, "needs PostgreSQL: see .ci/system-packages")
    filesystem = scratch.make_on_loop("data", size_mib=512)
    rescue([filesystem.mount_point])
    return filesystem


@pytest.fixture
def server(data: ScratchFilesystem) -> Iterator[PostgreSqlServer]:
    """A server with a table."""
    with postgresql_server(data.mount_point) as running:
        running.ask("CREATE TABLE orders (id int GENERATED ALWAYS AS IDENTITY)")
        yield running


@pytest.fixture
def blob(fault_server: StartFaultServer) -> FaultServer:
    """A blob service that answers at once."""
    return fault_server()


def option(server: PostgreSqlServer, *values: str) -> str:
    return ",".join((f"--quiesce=postgresql:host={server.directory},linux_user=postgres", *values))


def lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_position_is_noted_and_the_session_proven(
    server: PostgreSqlServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    server.ask("INSERT INTO orders DEFAULT VALUES")
    ((before,),) = server.ask("SELECT pg_current_wal_flush_lsn()")
    finished = take_snapshot([data.mount_point], [blob.uri("disk")], option(server))
    ((after, identifier),) = server.ask(
        "SELECT pg_current_wal_insert_lsn(), system_identifier FROM pg_control_system()"
    )
    report = finished.document
    assert (finished.status, report["consistency"], report["why"]) == (0, "application", None)
    application = application_of(report)
    assert (application["outcome"], application["proof"]) == ("held", "session")
    assert (application["method"], application["position_is"]) == ("CHECKPOINT", "lower-bound")
    position = application["position"]
    assert lsn(before) <= lsn(position["lsn"]) <= lsn(after)
    assert position["system_identifier"] == identifier
    assert (position["timeline"], position["in_recovery"]) == ("1", "no")
    assert position["wal_file"].startswith("00000001")
    assert application["files"] == {}


def test_backup_mode_keeps_label_and_tablespace_map_byte_for_byte(
    data: ScratchFilesystem, blob: FaultServer, tmp_path: Path
) -> None:
    with postgresql_server(data.mount_point, tablespaces={"extra": data.mount_point}) as server:
        report = tmp_path / "report"
        named = option(server, "backup_mode=yes")
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], named, f"--report={report}")
        application = application_of(finished.document)
        for name, content in application["files"].items():
            beside = tmp_path / f"report.postgresql.{name}"
            assert beside.read_bytes() == content.encode()
            assert beside.stat().st_mode & 0o777 == 0o600
        assert (finished.document["consistency"], application["method"]) == ("application", "backup mode")
        label = application["files"]["backup_label"]
        assert label.startswith("START WAL LOCATION: ")
        assert "\nLABEL: vmsnapshot\n" in label
        assert label.endswith("\n")
        ((number,),) = server.ask("SELECT oid FROM pg_tablespace WHERE spcname = 'extra'")
        assert application["files"]["tablespace_map"] == f"{number} {data.mount_point}/extra\n"
        position = application["position"]
        assert lsn(position["backup_start_lsn"]) <= lsn(position["lsn"]) <= lsn(position["backup_stop_lsn"])
        # No session is in backup mode any more, so the server shuts down at once.
        assert server.ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'") == [["1"]]


@pytest.mark.parametrize("mode", ["no", "yes"])
@pytest.mark.parametrize("how", ["pg_terminate_backend", "SIGKILL of the client"])
def test_session_that_ends_within_the_window_is_never_called_held(
    server: PostgreSqlServer, data: ScratchFilesystem, blob: FaultServer, mode: str, how: str
) -> None:
    for _ in range(5):
        blob.script("disk", Creates(after_ms=200.0))
        blob.forget_requests()
        named = option(server, f"backup_mode={mode}")
        with SnapshotRun([data.mount_point], [blob.uri("disk")], named) as run:
            (client,) = children_of_soon(run)
            run.wait_until_open(blob)
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 (no secret)
            if how == "pg_terminate_backend":
                ended = server.ask(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'psql' AND pid <> pg_backend_pid()"
                )
                assert ended == [["t"]]
            else:
                kill(client)
            finished = run.finish()
        application = application_of(finished.document)
        assert (application["outcome"], application["error_code"]) == ("lost", "session-lost")
        assert (finished.status, finished.document["consistency"]) == (1, "filesystem")
        assert application["files"] == {}


def test_wal_and_tablespaces_on_filesystems_that_are_not_frozen_are_named(
    data: ScratchFilesystem, scratch: ScratchFilesystems, rescue: ArmRescue, blob: FaultServer
) -> None:
    wal = scratch.make_on_loop("wal", size_mib=256)
    extra = scratch.make_on_loop("extra", size_mib=64)
    places = [data.mount_point, wal.mount_point, extra.mount_point]
    rescue(places)
    tablespaces = {"fast": extra.mount_point}
    with postgresql_server(data.mount_point, wal.mount_point, tablespaces) as server:
        for left_out, named in (
            (wal, wal.mount_point / "pg_wal"),
            (extra, extra.mount_point / "fast"),
            (None, ""),
        ):
            mounts = [place for place in places if left_out is None or place != left_out.mount_point]
            finished = take_snapshot(mounts, [blob.uri("disk")], option(server))
            application = application_of(finished.document)
            assert application["outcome"] == ("held" if left_out is None else "not-covered")
            assert f"{named}" in (application["error"] or "")
            assert finished.status == int(left_out is not None)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (["user=nobody-knows"], "access-denied"),
        (["database=nothing"], "access-denied"),
        (["user=weak", "linux_user=weak"], "no-user"),
        (["service=missing"], "bad-defaults"),
        (["host=/missing"], "no-server"),
    ],
)
def test_what_a_server_refuses_is_named_before_the_freeze(
    server: PostgreSqlServer, data: ScratchFilesystem, blob: FaultServer, values: list[str], code: str
) -> None:
    given = dict(value.split("=") for value in (f"host={server.directory}", "linux_user=postgres", *values))
    named = ",".join(f"{key}={value}" for key, value in given.items())
    finished = take_snapshot([data.mount_point], [blob.uri("disk")], f"--quiesce=postgresql:{named}")
    assert (finished.status, finished.error_code) == (1, code)
    assert "application `postgresql`" in finished.errors
    assert blob.requests() == []


def test_missing_privilege_is_named(
    server: PostgreSqlServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    server.ask("CREATE ROLE weak LOGIN")
    access = server.data / "pg_hba.conf"
    access.write_text("local all weak trust\n" + access.read_text())
    server.ask("SELECT pg_reload_conf()")
    finished = take_snapshot([data.mount_point], [blob.uri("disk")], option(server, "user=weak"))
    assert (finished.status, finished.error_code) == (1, "no-privilege")
    assert "42501" in finished.errors


def test_server_that_never_answers_costs_only_its_time_limit(
    data: ScratchFilesystem, blob: FaultServer, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432"))
        listener.listen()
        began = time.monotonic()
        named = f"--quiesce=postgresql:host={tmp_path},ready=1"
        finished = take_snapshot([data.mount_point], [blob.uri("disk")], named)
        assert time.monotonic() - began < 6
    assert (finished.status, finished.error_code) == (1, "timed-out")


def test_killed_run_leaves_no_session(
    server: PostgreSqlServer, data: ScratchFilesystem, blob: FaultServer
) -> None:
    blob.script("disk", NeverAnswers())
    for killed in ("run", "keeper"):
        blob.forget_requests()
        named = option(server, "backup_mode=yes")
        with SnapshotRun([data.mount_point], [blob.uri("disk")], named, thaw_timeout=2.0) as run:
            run.wait_until_open(blob)
            if killed == "run":
                run.send(signal.SIGKILL)
            else:
                kill(keeper_of(run.process.pid))
            until = time.monotonic() + 3
            question = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql'"
            while server.ask(question) != [["1"]]:
                assert time.monotonic() < until


def children_of_soon(run: SnapshotRun) -> list[int]:
    """Waits until the keeper of a run has started its client."""
    until = time.monotonic() + 10
    while True:
        try:
            children = children_of(keeper_of(run.process.pid))
        except AssertionError:
            children = []
        if children:
            return children
        assert time.monotonic() < until, "no client was started"
        time.sleep(0.005)
