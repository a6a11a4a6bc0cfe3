"""Holds MariaDB or MySQL still: commits, DDL and tables without transactions."""

from __future__ import annotations

import math
import os
import platform
import shutil
from pathlib import Path

from vmsnapshot.quiesce.applications import MariaDb
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.programs import PATH, plain_environment
from vmsnapshot.quiesce.quiescer import Position, Quiescer
from vmsnapshot.quiesce.sql_session import SqlSession

CLIENTS = ("mariadb", "mysql")
# The first MariaDB with BACKUP STAGE.
BACKUP_STAGE_SINCE = (10, 4)
# The first MySQL that has no SHOW MASTER STATUS any more.
BINARY_LOG_STATUS_SINCE = (8, 4)

# The client's and the server's error numbers (mysqld_error.h, errmsg.h). All others are `sql-error`.
_CODES = (
    (r"ERROR (1045|1698|1251|2059)\b", "access-denied"),
    (r"ERROR (1044|1142|1143|1227|1370|1419)\b", "no-privilege"),
    (r"ERROR (1205|1969|3024)\b", "lock-timeout"),
    (r"ERROR (1040|1203|1226)\b", "too-many-connections"),
    (r"ERROR (2002|2003|2005)\b", "no-server"),
    (r"ERROR (1053|1927|2006|2013)\b", "session-lost"),
    (r"ERROR \d+\b", "sql-error"),
    (r"unknown (option|variable)|defaults (file|handling)", "bad-defaults"),
)
_VARIABLES = (
    "datadir",
    "hostname",
    "innodb_data_home_dir",
    "innodb_flush_log_at_trx_commit",
    "innodb_log_group_home_dir",
    "innodb_undo_directory",
    "log_bin_basename",
    "relay_log_basename",
    "server_id",
    "server_uuid",
    "slave_parallel_threads",
    "replica_parallel_workers",
    "version",
    "wsrep_on",
)
# The oldest first.
_RUNNING = (
    "SELECT ID, TIME FROM information_schema.PROCESSLIST "
    "WHERE COMMAND IN ('Query', 'Execute') AND ID <> CONNECTION_ID() ORDER BY TIME DESC;"
)
_DIRECTORIES = ("innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory")


class MariaDbQuiescer(Quiescer):
    """One session, in which the lock is taken and released. The server releases it when the session ends."""

    proof = "session"

    def __init__(self, application: MariaDb, run: RunLink) -> None:
        super().__init__()
        self._application = application
        self._run = run
        self._opened: SqlSession | None = None
        self._connection = ""
        self._variables: dict[str, str] = {}
        self._uses_stages = False

    def ready(self, deadline: float) -> None:
        """Connects, reads what the server is, limits its waits, and finds its files."""
        self._opened = self._open()
        ask = self._session.ask
        self._connection = self._session.value("SELECT CONNECTION_ID();", deadline)
        names = ",".join(f"'{name}'" for name in _VARIABLES)
        rows = ask(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names});", deadline)
        self._variables = {row[0]: row[1] if len(row) > 1 else "" for row in rows}
        self._uses_stages = self._application.lock == "backup-stage" or (
            self._application.lock == "auto" and self._is_mariadb and self._version >= BACKUP_STAGE_SINCE
        )
        self.method = "BACKUP STAGE BLOCK_COMMIT" if self._uses_stages else "FLUSH TABLES WITH READ LOCK"
        wait = self._application.wait_seconds
        # The server ends its own wait before we give up on it: a session that is cut off while it waits for a
        # lock goes on waiting, and everybody waits behind it.
        limits = f"SET SESSION lock_wait_timeout={max(1, math.ceil(wait) - 1)};"
        if self._is_mariadb:
            limits += f" SET SESSION max_statement_time={wait * 0.9:.3f};"
        ask(limits, deadline)
        self.data = self._find_data(deadline)

    def quiesce(self, deadline: float) -> None:
        """Takes the lock, and reads where the binary log stands under it."""
        if self._uses_stages:
            # START alone holds nobody up, but FLUSH already blocks writers of tables without transactions.
            stages = ("START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT")
            self._lock("".join(f"BACKUP STAGE {stage};" for stage in stages), deadline)
        else:
            self._refuse_behind_long_statements(deadline)
            self._lock("FLUSH TABLES WITH READ LOCK;", deadline)
        if self._variables.get("innodb_flush_log_at_trx_commit") == "0":
            # What was acknowledged may be in the server's memory only.
            self._session.ask("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS;", deadline)
        self.position = Position(self._read_position(deadline), "exact")

    def release(self, outcome: str, deadline: float) -> None:  # noqa: ARG002 (a server does not care)
        """Asks the session which it is, and unlocks. The lock lasts exactly as long as the session."""
        unlock = "BACKUP STAGE END;" if self._uses_stages else "UNLOCK TABLES;"
        try:
            rows = self._session.ask(f"SELECT CONNECTION_ID(); {unlock}", deadline)
        except QuiesceError as error:
            raise QuiesceError("session-lost", str(error)) from error
        if rows != [[self._connection]]:
            raise QuiesceError("session-lost", f"{self._subject} answered from another session")

    def close(self) -> None:
        """Ends the client. The server then ends the session, and with it every lock."""
        if self._opened is not None:
            self._opened.end()

    @property
    def _session(self) -> SqlSession:
        if self._opened is None:
            raise QuiesceError("not-started", f"{self._subject} was not started")
        return self._opened

    @property
    def _subject(self) -> str:
        return f"the session of `{self._application.label()}`"

    @property
    def _is_mariadb(self) -> bool:
        return "mariadb" in self._variables["version"].lower()

    @property
    def _version(self) -> tuple[int, ...]:
        numbers = self._variables["version"].partition("-")[0].split(".")
        return tuple(int(number) for number in numbers if number.isdigit())

    def _open(self) -> SqlSession:
        application = self._application
        clients = CLIENTS if application.kind == "mariadb" else CLIENTS[::-1]
        path = f"{application.client_directory}:{PATH}" if application.client_directory else PATH
        client = next((found for name in clients if (found := shutil.which(name, path=path))), None)
        if client is None:
            raise QuiesceError("no-client", f"there is no client `{clients[0]}` or `{clients[1]}`")
        # The client takes these only in front of all others.
        first = [
            f"--{option}={value}"
            for option, value in (
                ("defaults-file", application.defaults_file),
                ("login-path", application.login_path),
            )
            if value
        ]
        rest = [
            f"--{option}={value}"
            for option, value in (
                ("socket", application.socket),
                ("host", application.host),
                ("port", application.port),
                ("user", application.user),
            )
            if value
        ]
        fixed = ("batch", "raw", "unbuffered", "skip-column-names", "skip-reconnect", "no-auto-rehash")
        return SqlSession(
            self._subject,
            [client, *application.client_options, *first, *(f"--{option}" for option in fixed), *rest],
            self._run,
            environment=plain_environment(application.linux_user),
            linux_user=application.linux_user or None,
            mark="SELECT '{}';",
            codes=_CODES,
        )

    def _lock(self, statements: str, deadline: float) -> None:
        try:
            self._session.ask(statements, deadline)
        except QuiesceError as error:
            code = "lock-timeout" if error.code == "timed-out" else error.code
            raise QuiesceError(code, f"{error}{self._role()}") from error

    def _role(self) -> str:
        """Says what about the server can keep it from giving the lock."""
        if self._variables.get("wsrep_on", "OFF") == "ON":
            return "; the server is a node of a Galera cluster"
        names = ("slave_parallel_threads", "replica_parallel_workers")
        appliers = next((self._variables[name] for name in names if name in self._variables), "0")
        if appliers not in ("0", "1"):
            return f"; a replica with {appliers} parallel appliers can hold it up"
        return ""

    def _refuse_behind_long_statements(self, deadline: float) -> None:
        """A lock of all tables waits for every running statement, and everybody then waits for it."""
        limit = self._application.long_statement_seconds
        rows = self._session.ask(_RUNNING, deadline)
        for number, age in (row for row in rows if float(row[1]) >= limit):
            message = f"{self._subject} did not ask for the lock: statement {number} has run for {age} s"
            raise QuiesceError("long-statement", message)

    def _read_position(self, deadline: float) -> dict[str, str]:
        ask = self._session.ask
        values: dict[str, str] = {}
        for name in ("server_id", "server_uuid"):
            if name in self._variables:
                values[name] = self._variables[name]
        if self._is_mariadb:
            ((current, binlog),) = ask("SELECT @@gtid_current_pos, @@gtid_binlog_pos;", deadline)
            values |= {"gtid_current_pos": current, "gtid_binlog_pos": binlog}
        is_new = not self._is_mariadb and self._version >= BINARY_LOG_STATUS_SINCE
        for row in ask("SHOW BINARY LOG STATUS;" if is_new else "SHOW MASTER STATUS;", deadline):
            values |= {"binlog_file": row[0], "binlog_position": row[1]}
            if not self._is_mariadb and len(row) > 4:
                values["gtid_executed"] = row[4]
        return values

    def _find_data(self, deadline: float) -> list[str]:
        directory = self._variables["datadir"]
        if self._variables.get("hostname", platform.node()) != platform.node():
            # The same path of this machine is another one.
            return [f"{self._variables['hostname']}:{directory}"]
        inside = Path(directory)
        found = [directory, *(self._variables.get(name, "") for name in _DIRECTORIES)]
        for name in ("log_bin_basename", "relay_log_basename"):
            found.append(os.path.dirname(self._variables.get(name, "")))  # noqa: PTH120 (may be empty)
        if not self._is_mariadb:
            rows = self._session.ask("SELECT FILE_NAME FROM information_schema.FILES;", deadline)
            found += [row[0] for row in rows if not row[0].startswith("./")]
        found += _linked_from(inside)
        return [str(inside / path) for path in dict.fromkeys(found) if path]


def _linked_from(directory: Path) -> list[str]:
    """Returns what the data directory names and does not contain: databases, tables, tablespaces."""
    found = []
    try:
        entries = list(os.scandir(directory))
        for entry in list(entries):
            if entry.is_dir():
                entries += os.scandir(entry.path)
        for entry in entries:
            if entry.is_symlink():
                found.append(entry.path)
            elif entry.name.endswith(".isl"):
                # InnoDB's own link: a text file with the path of the tablespace.
                found.append(Path(entry.path).read_text().strip())
    except OSError:
        # Then the directory itself is not found either, and is reported.
        return found
    return found
