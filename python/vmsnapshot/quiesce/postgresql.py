"""Prepares PostgreSQL for a snapshot, and notes where its log stands.

PostgreSQL recovers from a snapshot of all its filesystems at one instant as after a power failure, without
any mode and without loss of what it has acknowledged. So nothing is locked. Backup mode is for those who
recover from the snapshot together with archived WAL.
"""

from __future__ import annotations

import base64
import os
import platform
import pwd
import shutil
import struct
from pathlib import Path

from vmsnapshot.quiesce.applications import PostgreSql
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.programs import PATH, plain_environment
from vmsnapshot.quiesce.quiescer import Position, Quiescer
from vmsnapshot.quiesce.sql_session import COLUMN, SqlSession

# The user of the packages, who may connect over the socket.
DEFAULT_USER = "postgres"
LABEL = "vmsnapshot"
# The first version with the new names of the functions, and without the exclusive mode.
BACKUP_START_SINCE = 150000

# The server's words may be in any language, but it sends SQLSTATE with them. libpq's words are English.
_CODES = (
    (r"ERROR: 42501:", "no-privilege"),
    (r"ERROR: (57014|55P03):", "lock-timeout"),
    (r"(ERROR|FATAL): (57P0[12]|08\w{3}):", "session-lost"),
    (r"authentication failed|no password supplied|no pg_hba.conf entry", "access-denied"),
    (r'role ".*" does not exist|database ".*" does not exist', "access-denied"),
    (r"too many (clients|connections)|remaining connection slots", "too-many-connections"),
    (r"starting up|shutting down|in recovery mode", "no-server"),
    (r"could not connect|connection to server .* failed|could not translate host", "no-server"),
    (r"service file|definition of service", "bad-defaults"),
    (r"terminating connection|server closed the connection|connection to server was lost", "session-lost"),
    (r"psql: error:", "no-server"),
    (r"ERROR: \w{5}:", "sql-error"),
)


class PostgreSqlQuiescer(Quiescer):
    """One session. In backup mode, the server leaves that mode when the session ends."""

    proof = "session"

    def __init__(self, application: PostgreSql, run: RunLink) -> None:
        super().__init__()
        self._application = application
        self._run = run
        self._opened: SqlSession | None = None
        self._backend = ""
        self._system_identifier = ""
        self._backup_start_lsn = ""
        self._version = 0
        self._is_in_recovery = False
        self.method = "backup mode" if application.backup_mode == "yes" else "CHECKPOINT"

    def ready(self, deadline: float) -> None:
        """Connects, has dirty pages written, and finds the server's files."""
        self._opened = self._open()
        limit_ms = round(self._application.ready_seconds * 900)
        self._session.ask(f"SET statement_timeout = {limit_ms}; SET lock_timeout = {limit_ms};", deadline)
        ((backend, version, in_recovery),) = self._session.ask(
            "SELECT pg_backend_pid(), current_setting('server_version_num'), pg_is_in_recovery();", deadline
        )
        self._backend, self._version, self._is_in_recovery = backend, int(version), in_recovery == "t"
        self.data = self._find_data(deadline)
        if self._uses_backup_mode:
            name, last = ("pg_backup_start", "") if self._is_new else ("pg_start_backup", ", false")
            self._backup_start_lsn = self._session.value(f"SELECT {name}('{LABEL}', true{last});", deadline)
        elif self._application.checkpoint == "yes":
            self._session.ask("CHECKPOINT;", deadline)
        else:
            self.method = "none"

    def quiesce(self, deadline: float) -> None:
        """Notes the position. What is flushed up to it is in the snapshot, and perhaps more."""
        lsn = "pg_last_wal_replay_lsn()" if self._is_in_recovery else "pg_current_wal_flush_lsn()"
        file = "NULL" if self._is_in_recovery else f"pg_walfile_name({lsn})"
        ((at, name, timeline),) = self._session.ask(
            f"SELECT {lsn}, {file}, (SELECT timeline_id FROM pg_control_checkpoint());",  # noqa: S608 (constants)
            deadline,
        )
        values = {"system_identifier": self._system_identifier, "timeline": timeline, "lsn": at}
        if name:
            # The checkpoint of a server that was promoted since is of the old timeline.
            values |= {"wal_file": name, "timeline": str(int(name[:8], 16))}
        if self._backup_start_lsn:
            values["backup_start_lsn"] = self._backup_start_lsn
        values["in_recovery"] = "yes" if self._is_in_recovery else "no"
        self.position = Position(values, "lower-bound")

    def release(self, outcome: str, deadline: float) -> None:  # noqa: ARG002 (a server does not care)
        """Asks the session which it is, and leaves backup mode."""
        try:
            rows = self._session.ask("SELECT pg_backend_pid();", deadline)
            if rows != [[self._backend]]:
                raise QuiesceError("session-lost", f"{self._subject} answered from another session")
            if self._uses_backup_mode:
                self._stop_backup(deadline)
        except QuiesceError as error:
            if error.code in ("timed-out", "no-privilege", "bad-answer"):
                raise
            raise QuiesceError("session-lost", str(error)) from error

    def close(self) -> None:
        """Ends the client, and with it the session."""
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
    def _uses_backup_mode(self) -> bool:
        return self._application.backup_mode == "yes"

    @property
    def _is_new(self) -> bool:
        return self._version >= BACKUP_START_SINCE

    def _open(self) -> SqlSession:
        application = self._application
        path = f"{application.client_directory}:{PATH}" if application.client_directory else PATH
        client = shutil.which("psql", path=path)
        if client is None:
            raise QuiesceError("no-client", "there is no client `psql`")
        given = {
            "service": application.service,
            "host": application.host,
            "port": application.port,
            "user": application.user,
            "dbname": application.database or ("" if application.service else "postgres"),
        }
        # A connection string, because only that can name a service.
        connection = " ".join(f"{key}='{_quoted(value)}'" for key, value in given.items() if value)
        linux_user = application.linux_user or _default_linux_user(application)
        fixed = ("no-psqlrc", "quiet", "no-align", "tuples-only", "no-password")
        return SqlSession(
            self._subject,
            [
                client,
                *(f"--{option}" for option in fixed),
                "--set=ON_ERROR_STOP=1",
                "--set=VERBOSITY=verbose",
                f"--field-separator={COLUMN}",
                f"--dbname={connection}",
                # Those of the owner win over ours.
                *application.client_options,
            ],
            self._run,
            environment={**plain_environment(linux_user), "LC_MESSAGES": "C"},
            linux_user=linux_user or None,
            mark="\\echo {}",
            codes=_CODES,
        )

    def _find_data(self, deadline: float) -> list[str]:
        ((identifier, directory),) = self._session.ask(
            "SELECT system_identifier, current_setting('data_directory') FROM pg_control_system();", deadline
        )
        self._system_identifier = identifier
        inside = Path(directory)
        if _system_identifier_of(inside) != identifier:
            # The same path of this machine is another server's, or none.
            return [f"{self._application.host or platform.node()}:{directory}"]
        found = [directory, str(inside / "pg_wal")]
        found += [entry.path for entry in os.scandir(inside / "pg_tblspc")]
        return found

    def _stop_backup(self, deadline: float) -> None:
        if self._is_new:
            call = "pg_backup_stop(wait_for_archive => false)"
        else:
            call = "pg_stop_backup(exclusive => false, wait_for_archive => false)"
        # Both files are kept byte for byte, so they travel as base64 without its line ends.
        encoding = "current_setting('server_encoding')"
        columns = (
            f"translate(encode(convert_to({name}, {encoding}), 'base64'), E'\\n', '')" for name in _FILES
        )
        statement = f"SELECT lsn, {', '.join(columns)} FROM {call};"  # noqa: S608 (constants)
        ((lsn, *contents),) = self._session.ask(statement, deadline)
        try:
            files = {file: base64.b64decode(text).decode() for file, text in zip(_FILES.values(), contents)}
        except UnicodeDecodeError:
            message = f"{self._subject}: backup_label or tablespace_map is not UTF-8, and cannot be reported"
            raise QuiesceError("bad-answer", message) from None
        self.files = {file: text for file, text in files.items() if text}
        self.position.values["backup_stop_lsn"] = lsn


# The columns of the answer, and the files that a restore needs with these names in the data directory.
_FILES = {"labelfile": "backup_label", "spcmapfile": "tablespace_map"}


def _default_linux_user(application: PostgreSql) -> str:
    """Returns the user of the packages if root connects over the socket and says no more."""
    is_given = application.host or application.service or application.user or application.client_options
    if is_given or os.geteuid() != 0:
        return ""
    try:
        return pwd.getpwnam(DEFAULT_USER).pw_name
    except KeyError:
        return ""


def _system_identifier_of(directory: Path) -> str | None:
    """Returns the identifier of the server whose data directory this is: the first word of pg_control."""
    try:
        with (directory / "global/pg_control").open("rb") as control:
            return str(struct.unpack("=Q", control.read(8))[0])
    except (OSError, struct.error):
        return None


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
