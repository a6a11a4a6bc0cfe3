"""Types of the compiled engine, ``vmsnapshot._native``.

Paths are ``str`` with ``surrogateescape``, so that no byte of a mount point is lost. Lengths of time are
seconds (``float``) going in and milliseconds (names ending in ``_ms``) coming out; instants are text in UTC.
Every class is frozen. Errors are the classes of ``vmsnapshot.errors``.
"""

from collections.abc import Callable, Sequence
from typing import Literal, final

@final
class PlannedFilesystem:
    """One superblock that is to be frozen."""

    @property
    def mount_point(self) -> str: ...
    @property
    def open_path(self) -> str: ...
    @property
    def also_mounted_at(self) -> list[str]: ...
    @property
    def device(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def filesystem_type(self) -> str: ...
    @property
    def level(self) -> int: ...

@final
class SkippedFilesystem:
    """One mounted superblock that is left out; ``reason`` is a stable code, ``why`` a sentence."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def filesystem_type(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class Plan:
    """What a run freezes, in freeze order, and what it leaves out."""

    @property
    def filesystems(self) -> list[PlannedFilesystem]: ...
    @property
    def skipped(self) -> list[SkippedFilesystem]: ...
    @property
    def unmatched_excludes(self) -> list[str]: ...
    def to_json(self) -> str: ...

@final
class FilesystemOutcome:
    """What became of one filesystem."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def filesystem_type(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def outcome(
        self,
    ) -> Literal[
        "thawed",
        "thawed-by-watchdog",
        "thawed-by-another",
        "frozen-by-another",
        "not-freezable",
        "freeze-failed",
        "not-frozen",
        "freeze-hung",
        "not-thawed",
    ]: ...
    @property
    def frozen_at(self) -> str | None: ...
    @property
    def freeze_ms(self) -> float | None: ...
    @property
    def thawed_at(self) -> str | None: ...
    @property
    def frozen_ms(self) -> float | None: ...
    @property
    def thawed_by(self) -> Literal["run", "watchdog", "another"] | None: ...
    @property
    def error(self) -> str | None: ...

@final
class BlobOutcome:
    """What became of one snapshot request; ``uri`` is without its query."""

    @property
    def uri(self) -> str: ...
    @property
    def outcome(self) -> Literal["created", "refused", "unknown"]: ...
    @property
    def snapshot(self) -> str | None: ...
    @property
    def snapshot_uri(self) -> str | None: ...
    @property
    def http_status(self) -> int | None: ...
    @property
    def error_code(self) -> str | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def retryable(self) -> bool: ...
    @property
    def attempts(self) -> int: ...
    @property
    def answer_ms(self) -> float | None: ...

@final
class TimelineEvent:
    """One moment of a run; ``at_ms`` counts from the start of the window."""

    @property
    def at_ms(self) -> float: ...
    @property
    def event(self) -> str: ...
    @property
    def subject(self) -> str | None: ...

@final
class Mode:
    """How the window was run."""

    @property
    def rcu_expedited(self) -> bool: ...
    @property
    def rcu_why_not(self) -> str | None: ...
    @property
    def parallel(self) -> bool: ...

@final
class WatchdogOutcome:
    """The watchdog's word."""

    @property
    def pid(self) -> int: ...
    @property
    def fired(self) -> Literal["parent-gone", "deadline", "told"] | None: ...
    @property
    def released(self) -> bool: ...
    @property
    def own_control_group(self) -> bool: ...
    @property
    def peak_memory_kib(self) -> int | None: ...

@final
class Report:
    """What a run did, and what its snapshots are worth."""

    @property
    def run_id(self) -> str: ...
    @property
    def started_at(self) -> str: ...
    @property
    def consistent(self) -> bool: ...
    @property
    def consistency(self) -> Literal["application", "filesystem", "crash", "none"]: ...
    @property
    def why(self) -> str | None: ...
    @property
    def all_thawed(self) -> bool: ...
    @property
    def window_ms(self) -> float | None: ...
    @property
    def thaw_timeout_ms(self) -> float: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def filesystems(self) -> list[FilesystemOutcome]: ...
    @property
    def blobs(self) -> list[BlobOutcome]: ...
    @property
    def watchdog(self) -> WatchdogOutcome: ...
    @property
    def timeline(self) -> list[TimelineEvent]: ...
    def to_json(self) -> str:
        """The document that ``--json`` and ``--report`` give; its schema is in README.md."""

@final
class Session:
    """A prepared run: watchdog started, directories open, connections warm; nothing frozen."""

    @property
    def run_id(self) -> str: ...
    def run(self) -> Report:
        """Freezes, snapshots and thaws, once; never raises after the first freeze."""
    def close(self) -> None:
        """Gives everything back; nothing is frozen. Does nothing after ``run``."""
    def __enter__(self) -> Session: ...
    def __exit__(self, *exc_info: object) -> None: ...

def plan(*, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Plan:
    """Reads mountinfo and sysfs; opens and stats no mount. Raises ``PlanError``."""

def prepare(
    plan: Plan,
    blobs: Sequence[str] = (),
    *,
    metadata: dict[str, str] | None = None,
    thaw_timeout: float = 10.0,
    sync_timeout: float | None = 30.0,
    connect_timeout: float = 10.0,
    ca_file: str | None = None,
    proxy: str | None = None,
    expedite_rcu: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Session:
    """Does all that can be done before the window; freezes nothing. Raises ``PrepareError``.

    ``progress`` is called with a short sentence at the start of each phase, never inside the window.
    """

def status() -> str:
    """What is frozen and by which run, as JSON, from ``/run/vmsnapshot``; see ``RunStatus`` in README.md."""

def thaw() -> str:
    """Thaws what runs of ours that are no longer alive left frozen; the JSON of what was done.

    Raises ``ThawError``.
    """

def version() -> str:
    """The version of the compiled engine."""
