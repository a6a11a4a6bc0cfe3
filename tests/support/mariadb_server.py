"""A MariaDB server of a test's own: user, data directory and socket, no network."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support import processes

START_SECONDS = 30.0


def is_installed() -> bool:
    """Returns whether server and client are there."""
    return all(shutil.which(name, path=_PATH) for name in ("mariadbd", "mariadb", "mariadb-install-db"))


class MariaDbServer:
    """A running server. Its data directory lies below `directory`, and its binary log below `logs`.

    If there is one already, it is used: that is how a server is started from a copy of its disks.
    """

    def __init__(self, directory: Path, logs: Path, *options: str) -> None:
        self.directory = directory
        self.data = directory / "mysql"
        self.socket = directory / "mysql.sock"
        user = _server_user()
        binlog = logs / "binlog"
        for path in {directory, logs, directory.parent, logs.parent}:
            # The server's user has to pass.
            path.chmod(0o755)
        self.errors = directory / "errors"
        if self.data.exists():
            # The index has the paths of the original.
            index = binlog / "binlog.index"
            names = [Path(line).name for line in index.read_text().splitlines()]
            index.write_text("".join(f"{binlog / name}\n" for name in names))
            self.errors.unlink()
        else:
            shutil.copytree(_template(user), self.data)
            binlog.mkdir()
            for path in (directory, self.data, *self.data.rglob("*"), binlog):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._errors = self.errors.open("wb")
        self._process = subprocess.Popen(
            [
                "/usr/sbin/mariadbd",
                "--no-defaults",
                f"--user={user.pw_name}",
                f"--datadir={self.data}",
                f"--socket={self.socket}",
                f"--pid-file={directory / 'pid'}",
                f"--log-bin={binlog / 'binlog'}",
                "--server-id=7",
                "--skip-networking",
                "--innodb-buffer-pool-size=32M",
                "--innodb-log-file-size=16M",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
        )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise AssertionError(f"the server did not start: {self.errors.read_text()}")
            time.sleep(0.05)

    def ask(self, statements: str, *, limit_seconds: float = 10.0, user: str = "root") -> list[list[str]]:
        """Makes statements in a session of their own, and returns their rows."""
        client = ["mariadb", "--no-defaults", f"--socket={self.socket}", f"--user={user}", "--batch"]
        output = processes.run_bounded(
            [*client, "--skip-column-names", f"--execute={statements}"], limit_seconds=limit_seconds
        )
        return [line.split("\t") for line in output.splitlines()]

    def session(self, statements: str) -> subprocess.Popen[bytes]:
        """Makes statements in a session that stays open until the process is ended."""
        client = ["mariadb", "--no-defaults", f"--socket={self.socket}", "--batch", "--unbuffered"]
        process = subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(statements.encode() + b"\n")
        process.stdin.flush()
        return process

    def kill(self) -> None:
        """Ends the server at once. Its filesystem must not be frozen."""
        processes.kill(self._process, limit_seconds=5.0)
        self._errors.close()

    def stop(self) -> None:
        """Ends the server. Its filesystem must not be frozen."""
        self._process.terminate()
        processes.end(self._process, limit_seconds=15.0)
        self._errors.close()

    def _answers(self) -> bool:
        with contextlib.suppress(processes.CommandError):
            return self.ask("SELECT 1") == [["1"]]
        return False


@contextlib.contextmanager
def mariadb_server(directory: Path, logs: Path | None = None, *options: str) -> Iterator[MariaDbServer]:
    """Runs a server for the length of a block."""
    server = MariaDbServer(directory, logs or directory, *options)
    try:
        yield server
    finally:
        server.stop()


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_templates: list[Path] = []


def _server_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("mysql")
    # The package without the service does not make it.
    return pwd.getpwnam("nobody")


def _template(user: pwd.struct_passwd) -> Path:
    """Returns a fresh data directory, made once for all tests: it takes seconds."""
    if not _templates:
        made = Path(tempfile.mkdtemp(prefix="vmsnapshot-mysql-"))
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        os.chown(made, user.pw_uid, user.pw_gid)
        processes.run_bounded(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--user={user.pw_name}",
                f"--datadir={made}",
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
                "--innodb-log-file-size=16M",
            ]
        )
        _templates.append(made)
    return _templates[0]
