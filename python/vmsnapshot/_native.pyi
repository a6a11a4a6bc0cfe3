"""Types of the compiled engine, ``vmsnapshot._native``.

Paths of a plan are ``str`` with ``surrogateescape``, so that no byte of a mount point is lost; in a report,
which is for reading, such a byte is ``\\xNN``. Lengths of time are
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
    def without_filesystems(self) -> Plan:
        """The same plan with nothing to freeze: a run of it sends its calls and freezes nothing."""
    def to_json(self) -> str: ...

@final
class HostCall:
    """One POST that a run sends inside its window, to a host that takes the snapshots by itself.

    ``uri`` is ``http://HOST[:PORT]/PATH[?QUERY]``; no proxy is ever used. ``headers`` are sent as they are,
    the case of their names kept; ``Host`` and ``Content-Length`` are the engine's, and not to be among them.
    ``time_limit`` (seconds, above 0, up to 3600) is how long an answer is waited for; the window may end
    earlier. Raises ``PrepareError`` (``bad-host-call``, ``bad-time-limit``). Its ``repr`` has no secret.
    """

    def __new__(
        cls, uri: str, *, headers: Sequence[tuple[str, str]], body: bytes, time_limit: float = 40.0
    ) -> HostCall: ...
    @property
    def uri(self) -> str:
        """The URI without its query."""

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
    @property
    def body(self) -> str | None:
        """What the service wrote with a refusal, 4 KiB at most, signatures blotted out; not in the JSON."""

@final
class HostCallOutcome:
    """What became of the host call; ``uri`` is without its query.

    ``answered``: the head of an answer came, ``http_status`` says which. ``not-sent``: nothing of it was
    written. ``unknown``: it was written, in part at least, and no answer came in time (``error_code`` is
    ``NoAnswer``, ``ConnectionLost`` or ``BadAnswer``): there may be snapshots.
    """

    @property
    def uri(self) -> str: ...
    @property
    def outcome(self) -> Literal["answered", "not-sent", "unknown"]: ...
    @property
    def http_status(self) -> int | None: ...
    @property
    def body(self) -> bytes:
        """The answer's body, 1 MiB at most; it may hold secrets, and is not in the JSON."""
    @property
    def body_is_complete(self) -> bool: ...
    @property
    def error_code(self) -> str | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def answer_ms(self) -> float | None: ...

@final
class TimelineEvent:
    """One moment of a run; ``at_ms`` counts from the first FIFREEZE and is negative before it."""

    @property
    def at_ms(self) -> float: ...
    @property
    def event(
        self,
    ) -> Literal[
        "sync-late",
        "sync-failed",
        "freeze-called",
        "freeze-returned",
        "thaw-called",
        "thawed",
        "request-sent",
        "request-ended",
        "window-closed",
    ]: ...
    @property
    def subject(self) -> str | None:
        """The mount point, blob or host that it happened to."""
    @property
    def detail(self) -> str | None:
        """What the system answered, for ``sync-failed``."""

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
    def consistency(self) -> Literal["filesystem", "crash", "none"]: ...
    @property
    def why(self) -> str | None: ...
    @property
    def freeze_doubt(self) -> str | None:
        """Why it is not known that everything planned was frozen over all calls; None if it is known."""
    @property
    def freeze_doubt_code(
        self,
    ) -> (
        Literal[
            "not-thawed",  # something is still frozen
            "freeze-hung",  # a FIFREEZE has not returned
            "thawed-by-watchdog",
            "thawed-by-another",
            "frozen-by-another",  # somebody else had frozen it: FIFREEZE answered EBUSY
            "freeze-failed",  # FIFREEZE answered another error
            "freeze-late",  # not everything was frozen in time: by the last moment to call, or before a stop
            "window-broke-off",  # by a fault of this program
            "watchdog-fired",
            "watchdog-lost",
            "nothing-frozen",  # nothing was planned, or the kernel can freeze nothing of it
        ]
        | None
    ):
        """The stable name of `freeze_doubt`."""
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
    def host_call(self) -> HostCallOutcome | None: ...
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
    blob_metadata: Sequence[dict[str, str]] = (),
    host_call: HostCall | None = None,
    unusable_blobs: Literal["refuse", "report"] = "refuse",
    thaw_timeout: float = 10.0,
    sync_timeout: float | None = 30.0,
    connect_timeout: float = 10.0,
    ca_file: str | None = None,
    proxy: str | None = None,
    expedite_rcu: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Session:
    """Does all that can be done before the window; freezes nothing. Raises ``PrepareError``.

    ``metadata`` goes with every snapshot; ``blob_metadata``, if given, is one mapping a blob, which goes with
    the snapshot of that blob besides. ``host_call`` is sent together with the snapshot requests; a host that
    cannot be reached is a ``PrepareError`` like that of a blob, and its message names the host call.
    ``unusable_blobs`` is what becomes of a blob whose URI or SAS is no good, that was given before, or whose
    server cannot be reached within ``connect_timeout``. ``refuse``: the first one is a ``PrepareError``.
    ``report``: it is sent nothing, the others are snapshotted, and its ``BlobOutcome`` is ``refused`` with 0
    attempts and the code and the message of that error (``uri`` is empty where it could not be read); times
    and permissions of a SAS are left for the service to judge, since this machine's clock may be wrong.
    Where no blob can be asked, and no host, the first blob's error is raised all the same.
    ``progress`` is called with a short sentence at the start of each phase, never inside the window.
    """

def status() -> str:
    """What is frozen and by which run, as JSON, from ``/run/vmsnapshot``; see ``RunStatus`` in README.md."""

def thaw() -> str:
    """Thaws what runs that are gone left frozen; the JSON of what was done. Raises ``ThawError``."""

def leave_control_group(name: str) -> bool:
    """Moves this process into a control group of its own, so that ending the one it was started in spares it.

    The group is ``NAME-PID`` at the root of cgroup v2, and of systemd's v1 hierarchy. False where there is
    none, or it cannot be had. It stays when the process ends; the next call with this ``name``, in any
    process, removes it. Raises ``ValueError`` for a name that is not made of ASCII letters, digits, hyphens
    and underscores.
    """

def version() -> str:
    """The version of the compiled engine."""
