"""What a caller says about the applications to hold still: plain, frozen data without a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Application:
    """What every application has.

    If it is ``required`` and does not hold still, the run ends before it freezes; if it is lost later, the
    set of snapshots is not what was asked for. ``ready_seconds`` limits connecting and checking, before the
    run freezes. ``wait_seconds`` limits the wait for the application to hold still, and ``release_seconds``
    that for its last answer. ``name`` is what the report calls it; empty means its kind, or what identifies
    it.
    """

    kind: ClassVar[str]
    # The field that a bare value on a command line is for, if there is one.
    argument: ClassVar[str | None] = None
    # Whether its own limit counts for the wait, whatever the thaw timeout is.
    has_own_limit: ClassVar[bool] = False
    # The values that a field may have, if not every text.
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    name: str = ""
    required: bool = True
    ready_seconds: float = 10.0
    wait_seconds: float = 5.0
    release_seconds: float = 5.0

    def longest_wait(self, limit_seconds: float) -> float:
        """Returns how long to wait until it holds still, in a run with the limit `limit_seconds`."""
        return self.wait_seconds if self.has_own_limit else min(self.wait_seconds, limit_seconds)

    def label(self) -> str:
        """Returns what the report calls it."""
        return self.name or self.kind


@dataclass(frozen=True)
class Hook(Application):
    """A program that holds an application still which vmsnapshot does not know.

    It is started with ``arguments`` and answers on its standard output. It writes ``ready``. It reads
    ``quiesce``, makes its application hold still and writes ``quiesced``. It reads ``released OUTCOME``,
    releases the application and exits with status 0. A line ``error TEXT`` in place of an answer is its
    failure. If it reads the end of its standard input before ``released``, whoever started it was killed: it
    releases the application and exits.
    """

    kind: ClassVar[str] = "hook"
    argument: ClassVar[str | None] = "program"

    program: str = ""
    arguments: tuple[str, ...] = ()

    def label(self) -> str:
        """Returns what the report calls it: by default the program without its directory."""
        return self.name or self.program.rpartition("/")[2] or self.kind


@dataclass(frozen=True)
class MariaDb(Application):
    """A MariaDB server, held still by a lock on commits and DDL in a session of its client.

    The client connects as its owner has set it up, with root's own set-up or that of ``linux_user``.
    ``lock`` chooses the statement: ``backup-stage``, ``read-lock`` or ``auto``. A read lock is not asked for
    while a statement has run for ``long_statement_seconds``.
    """

    kind: ClassVar[str] = "mariadb"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"lock": ("auto", "backup-stage", "read-lock")}

    socket: str = ""
    host: str = ""
    port: str = ""
    user: str = ""
    defaults_file: str = ""
    login_path: str = ""
    linux_user: str = ""
    client_directory: str = ""
    # Put in front of our own, as they are. Their owner may have put a secret into them.
    client_options: tuple[str, ...] = field(default=(), repr=False)
    lock: Literal["auto", "backup-stage", "read-lock"] = "auto"
    long_statement_seconds: float = 1.0


@dataclass(frozen=True)
class MySql(MariaDb):
    """A MySQL server. As `MariaDb`, with a read lock."""

    kind: ClassVar[str] = "mysql"


@dataclass(frozen=True)
class PostgreSql(Application):
    """A PostgreSQL server, with its position noted in a session of ``psql``.

    The client connects as its owner has set it up; without any value it is run by the user ``postgres``, over
    the socket. ``checkpoint`` shortens the recovery. ``backup_mode`` is for those who recover with archived
    WAL: the report then has ``backup_label`` and ``tablespace_map``.
    """

    kind: ClassVar[str] = "postgresql"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "checkpoint": ("yes", "no"),
        "backup_mode": ("yes", "no"),
    }

    service: str = ""
    host: str = ""
    port: str = ""
    user: str = ""
    database: str = ""
    linux_user: str = ""
    client_directory: str = ""
    # As for `MariaDb`.
    client_options: tuple[str, ...] = field(default=(), repr=False)
    checkpoint: Literal["yes", "no"] = "yes"
    backup_mode: Literal["yes", "no"] = "no"


@dataclass(frozen=True)
class Scripts(Application):
    """A script that runs before the freeze, and one that runs after the thaw, whatever became of the first.

    Each is run as ``sh PROGRAM ARGUMENTS...`` in ``directory``, again while it fails, up to its number of
    tries. All tries together may take ``wait_seconds`` or ``release_seconds``. ``task`` is told to both.
    """

    kind: ClassVar[str] = "scripts"
    has_own_limit: ClassVar[bool] = True

    before: str = ""
    before_arguments: tuple[str, ...] = ()
    before_tries: int = 1
    after: str = ""
    after_arguments: tuple[str, ...] = ()
    after_tries: int = 1
    directory: str = "/"
    task: str = ""
