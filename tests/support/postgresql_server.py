"""A PostgreSQL server of a test's own: data directory and socket, no network. It runs as user `postgres`."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support import processes

START_SECONDS = 30.0
USER = "postgres"


def programs() -> Path | None:
    """Returns the directory of the newest server's programs, or `None` if none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


class PostgreSqlServer:
    """A running server. Its data directory lies below `directory`, and its WAL below `wal`.

    If there is one already, it is used: that is how a server is started from a copy of its disks.
    """

    def __init__(self, directory: Path, wal: Path | None) -> None:
        self.directory = directory
        self.data = directory / "pg"
        account = pwd.getpwnam(USER)
        self._account = account
        for path in {directory, directory.parent, *([wal] if wal else [])}:
            # The server's user has to pass.
            path.chmod(0o755)
        for path in {directory, *([wal] if wal else [])}:
            os.chown(path, account.pw_uid, account.pw_gid)
        self.errors = directory / "errors"
        if self.data.exists():
            self._start_from_copy(wal)
            return
        options = ["--auth=peer", "--locale=C", "--encoding=UTF8", "--no-sync"]
        if wal:
            options.append(f"--waldir={wal / 'pg_wal'}")
        self._run(["initdb", f"--pgdata={self.data}", *options])
        self.start()

    def _start_from_copy(self, wal: Path | None) -> None:
        for left in (self.data / "postmaster.pid", self.errors, *self.directory.glob(".s.PGSQL.*")):
            left.unlink()
        if wal:
            link = self.data / "pg_wal"
            link.unlink()
            link.symlink_to(wal / "pg_wal")
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._errors = self.errors.open("ab")
        self._process = subprocess.Popen(
            [
                self._program("postgres"),
                "-D",
                str(self.data),
                *("-k", str(self.directory), "-c", "listen_addresses=", "-c", "shared_buffers=16MB"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            user=self._account.pw_uid,
            group=self._account.pw_gid,
        )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(f"the server did not start: {self.errors.read_text()}")
            time.sleep(0.05)

    def ask(self, statements: str, *, limit_seconds: float = 10.0) -> list[list[str]]:
        """Makes statements in a session of their own, and returns their rows."""
        options = ["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--field-separator=\t"]
        connection = [f"--host={self.directory}", "--dbname=postgres", "--set=ON_ERROR_STOP=1"]
        output = self._run(
            ["psql", *options, *connection, f"--command={statements}"], limit_seconds=limit_seconds
        )
        return [line.split("\t") for line in output.splitlines()]

    def kill(self) -> None:
        """Ends the server at once. Its filesystem must not be frozen."""
        # The others of its processes end when it does.
        processes.kill(self._process, limit_seconds=5.0)
        time.sleep(0.2)
        self._errors.close()

    def stop(self, *, limit_seconds: float = 15.0) -> None:
        """Ends the server. Its filesystem must not be frozen."""
        # SIGINT is its fast shutdown.
        self._process.send_signal(2)
        processes.end(self._process, limit_seconds=limit_seconds)
        self._errors.close()

    def _answers(self) -> bool:
        with contextlib.suppress(processes.CommandError):
            return self.ask("SELECT 1") == [["1"]]
        return False

    def _program(self, name: str) -> str:
        directory = programs()
        assert directory is not None
        return str(directory / name)

    def _run(self, arguments: list[str], *, limit_seconds: float = 30.0) -> str:
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups"]
        return processes.run_bounded(
            [*as_user, self._program(arguments[0]), *arguments[1:]], limit_seconds=limit_seconds
        )


@contextlib.contextmanager
def postgresql_server(
    directory: Path, wal: Path | None = None, tablespaces: Mapping[str, Path] | None = None
) -> Iterator[PostgreSqlServer]:
    """Runs a server for the length of a block. Each tablespace lies in a directory of its own."""
    server = PostgreSqlServer(directory, wal)
    try:
        for name, place in (tablespaces or {}).items():
            location = place / name
            location.mkdir()
            place.chmod(0o755)
            os.chown(location, pwd.getpwnam(USER).pw_uid, -1)
            server.ask(f"CREATE TABLESPACE {name} LOCATION '{location}'")
        yield server
    finally:
        server.stop()
