"""Types of the compiled engine, ``vmsnapshot._native``.

Paths of a plan are ``str`` with ``surrogateescape``, so that no byte of a mount point is lost; in a report,
which is for reading, such a byte is ``\\xNN``. Lengths of time are
seconds (``float``) going in and milliseconds (names ending in ``_ms``) coming out; instants are text in UTC.
Every class is frozen. Errors are the classes of ``vmsnapshot.errors``.
"""

from collections.abc import Callable, Sequence
from typing import Literal, final

from typing_extensions import TypeAlias

# The names of every value that a program may have to decide by. `names()` returns the same lists from the
# compiled module, and a test compares the two.

ErrorKind: TypeAlias = Literal[
    "arguments",  # another argument, SAS or privilege is needed
    "system",  # something of this machine is in the way
    "network",  # the network, or a server on it
    "another-run",
    "left-frozen",  # an earlier run left something frozen
    "interrupted",
]
ErrorSubject: TypeAlias = Literal[
    "callee",  # a blob or the host: it cannot be named, asked or reached
    "metadata",
    "filesystem",  # a planned one cannot be opened, or is not the planned one any more
    "watchdog",
    "run",  # the run as a whole
]
Phase: TypeAlias = Literal["open-filesystems", "connect", "start-watchdog", "sync", "freeze"]
FilesystemResult: TypeAlias = Literal[
    "thawed",
    "thawed-by-watchdog",
    "thawed-by-another",
    "frozen-by-another",
    "not-freezable",
    "freeze-failed",
    "not-frozen",
    "freeze-hung",
    "not-thawed",
]
ThawedBy: TypeAlias = Literal["run", "watchdog", "another"]
BlobResult: TypeAlias = Literal["created", "refused", "unknown"]
HostCallResult: TypeAlias = Literal["answered", "not-sent", "unknown"]
Consistency: TypeAlias = Literal["filesystem", "crash", "none"]
FreezeDoubt: TypeAlias = Literal[
    "not-thawed",  # something is still frozen
    "freeze-hung",  # a FIFREEZE has not returned
    "thawed-by-watchdog",
    "thawed-by-another",
    "frozen-by-another",  # another program had frozen it: FIFREEZE answered EBUSY
    "freeze-failed",  # FIFREEZE answered another error
    "not-freezable",  # the kernel cannot freeze a filesystem that can be written
    "freeze-late",  # not everything was frozen by the last moment to call, or before the run was stopped
    "window-broke-off",  # by a fault of this program
    "watchdog-fired",
    "watchdog-lost",
    "nothing-frozen",  # nothing was planned
]
FireReason: TypeAlias = Literal["parent-gone", "deadline", "told"]
TimelineEventKind: TypeAlias = Literal[
    "sync-late",
    "sync-failed",
    "freeze-called",
    "freeze-returned",
    "thaw-called",
    "thawed",
    "request-sent",
    "request-ended",
    "window-closed",
]
FreezeState: TypeAlias = Literal[
    "planned",
    "announced",  # FIFREEZE was called, and may have succeeded
    "frozen",
    "refused",  # FIFREEZE failed
    "revoked",  # the window ended before its turn
    "thawed-by-run",
    "thawed-by-watchdog",
    "thawed-by-another",
    "thawed-by-operator",  # `vmsnapshot thaw`
]
RunState: TypeAlias = Literal[
    "at-work",  # the run or its watchdog is alive, and its deadline has not passed
    "late",  # its deadline has passed, and its watchdog is alive and tries to thaw
    "abandoned",  # something may be frozen, and neither the run nor its watchdog is going to thaw it
    "over",  # nothing of it can be frozen any more
    "of-another-version",  # another version wrote its ledger, and something may be frozen
]

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
    @property
    def unusable_excludes(self) -> list[tuple[str, str]]:
        """Exclude patterns that have no meaning and were passed over, each with what is wrong; not in the JSON."""
    def without_filesystems(self) -> Plan:
        """The same plan with nothing to freeze: a run of it sends its calls and freezes nothing."""
    def to_json(self) -> str: ...

@final
class Mount:
    """One mount of this process's mount namespace, as ``/proc/self/mountinfo`` has it.

    ``device`` is the superblock's major:minor, the same for all mounts of it. ``is_visible`` is false if another
    mount covers this one. ``block_devices`` are the numbers of the block devices that it lies on directly.
    """

    @property
    def mount_id(self) -> int: ...
    @property
    def parent_id(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def root(self) -> str: ...
    @property
    def mount_point(self) -> str: ...
    @property
    def mount_options(self) -> str: ...
    @property
    def filesystem_type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def super_options(self) -> str: ...
    @property
    def is_visible(self) -> bool: ...
    @property
    def is_on_local_block_device(self) -> bool:
        """False for network filesystems, memory filesystems and every FUSE, ``fuseblk`` included."""
    @property
    def block_devices(self) -> list[str]: ...

@final
class BlockDevice:
    """One block device. ``number`` is its major:minor, ``directory`` its place in sysfs, links resolved.

    ``names`` are the paths that it is known by (``/dev/dm-0``, ``/dev/mapper/data``). ``parents`` are the numbers of
    the devices right below it: the disk of a partition, the slaves of dm, md and bcache. ``backing_file`` is the
    file of a loop device.
    """

    @property
    def number(self) -> str: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def directory(self) -> str: ...
    @property
    def parents(self) -> list[str]: ...
    @property
    def backing_file(self) -> str | None: ...

@final
class Machine:
    """What is mounted, and which block devices there are, as they were when this was read."""

    @property
    def mounts(self) -> list[Mount]:
        """In the order of mountinfo."""
    @property
    def block_devices(self) -> list[BlockDevice]:
        """In the order of their numbers."""
    def plan(
        self,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        exclude_mounts: Sequence[Mount] = (),
        unusable_excludes: Literal["refuse", "report"] = "refuse",
    ) -> Plan:
        """Plans what a run would freeze, as `plan` does. Raises ``PlanError``.

        The filesystems of ``exclude_mounts`` are left out, whatever includes them. An exclude pattern that has no
        meaning is an error with ``refuse``; with ``report`` it is passed over and listed in
        ``Plan.unusable_excludes``.
        """

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
    def outcome(self) -> FilesystemResult: ...
    @property
    def frozen_at(self) -> str | None: ...
    @property
    def freeze_ms(self) -> float | None: ...
    @property
    def thawed_at(self) -> str | None: ...
    @property
    def frozen_ms(self) -> float | None: ...
    @property
    def thawed_by(self) -> ThawedBy | None: ...
    @property
    def error(self) -> str | None: ...

@final
class BlobOutcome:
    """What became of one snapshot request; ``uri`` is without its query."""

    @property
    def uri(self) -> str: ...
    @property
    def outcome(self) -> BlobResult: ...
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
    def outcome(self) -> HostCallResult: ...
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
    """One moment of a run. ``at_ms`` counts from the start of the window.

    ``subject`` is the mount point or the blob it happened to. ``detail`` has the system's words for a sync that
    failed.
    """

    @property
    def at_ms(self) -> float: ...
    @property
    def event(self) -> TimelineEventKind: ...
    @property
    def subject(self) -> str | None: ...
    @property
    def detail(self) -> str | None: ...

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
    def fired(self) -> FireReason | None: ...
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
    def consistency(self) -> Consistency: ...
    @property
    def why(self) -> str | None: ...
    @property
    def freeze_doubt(self) -> str | None:
        """Why it is not known that everything planned was frozen over all calls; None if it is known."""
    @property
    def freeze_doubt_code(self) -> FreezeDoubt | None:
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
        """The document that ``--json`` and ``--report`` give; see docs/documents.md."""

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
    progress: Callable[[Phase], object] | None = None,
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
    ``progress`` is called with the name of each phase at its start, ``freeze`` being the last, and never inside the
    window.
    """

def machine() -> Machine:
    """Reads mountinfo and sysfs; opens and stats no mount. Raises ``PlanError``."""

@final
class FrozenFilesystem:
    """One filesystem that may be frozen by a run of vmsnapshot."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def since(self) -> str | None:
        """When FIFREEZE was called."""
    @property
    def state(self) -> Literal["announced", "frozen"]: ...

@final
class RunFilesystem:
    """One filesystem of a run, as its ledger has it."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def state(self) -> FreezeState: ...
    @property
    def thawed_by(self) -> Literal["run", "watchdog", "another", "operator"] | None: ...
    @property
    def frozen_at(self) -> str | None:
        """When FIFREEZE was called."""
    @property
    def thawed_at(self) -> str | None: ...

@final
class RunStatus:
    """One run. The processes are ``None`` if another version of vmsnapshot wrote the ledger."""

    @property
    def run_id(self) -> str: ...
    @property
    def state(self) -> RunState: ...
    @property
    def started_at(self) -> str | None:
        """When its window began; ``None`` before it."""
    @property
    def thaws_by(self) -> str | None:
        """When everything is to be thawed at the latest; ``None`` before its window."""
    @property
    def pid(self) -> int | None: ...
    @property
    def alive(self) -> bool | None: ...
    @property
    def watchdog_pid(self) -> int | None: ...
    @property
    def watchdog_alive(self) -> bool | None: ...
    @property
    def fired(self) -> FireReason | None: ...
    @property
    def finished(self) -> bool: ...
    @property
    def filesystems(self) -> list[RunFilesystem]: ...

@final
class RcuStatus:
    """``/sys/kernel/rcu_expedited``, and the run that switched it on and has not put it back."""

    @property
    def value(self) -> int | None: ...
    @property
    def held_by(self) -> str | None: ...

@final
class UnreadableLedger:
    """A file in ``/run/vmsnapshot`` that should be the ledger of a run, and why it cannot be read."""

    @property
    def path(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class Status:
    """What is frozen, by which run, and since when."""

    @property
    def frozen(self) -> list[FrozenFilesystem]: ...
    @property
    def runs(self) -> list[RunStatus]: ...
    @property
    def unreadable(self) -> list[UnreadableLedger]: ...
    @property
    def rcu_expedited(self) -> RcuStatus: ...
    def to_json(self) -> str:
        """The document of ``vmsnapshot status --json``; see docs/documents.md."""

def status() -> Status:
    """Reads ``/run/vmsnapshot``, and asks no filesystem. Raises ``ThawError``.

    The kernel cannot be asked whether a filesystem is frozen, so this knows about runs of vmsnapshot only.
    """

@final
class Thawed:
    """One filesystem that was thawed, or found thawed."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def run_id(self) -> str: ...

@final
class ThawFailed:
    """One filesystem that is still frozen."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def error(self) -> str: ...

@final
class ThawLeftAlone:
    """A run that was not touched, and why; its mount points are separated by commas."""

    @property
    def mount_point(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class ThawResult:
    """What a thaw did."""

    @property
    def thawed(self) -> list[Thawed]: ...
    @property
    def failed(self) -> list[ThawFailed]: ...
    @property
    def left_alone(self) -> list[ThawLeftAlone]: ...
    @property
    def rcu_restored(self) -> bool: ...
    def to_json(self) -> str:
        """The document of ``vmsnapshot thaw --json``; see docs/documents.md."""

def thaw() -> ThawResult:
    """Thaws what runs left frozen that can no longer do it themselves; leaves everything else alone.

    Blocking: five seconds, for FITHAW calls that do not return. Raises ``ThawError`` if nothing could be tried.
    """

def names() -> dict[str, list[str]]:
    """Returns the names of all values of the types above (``"Phase"``, ...), in their order."""

def leave_control_group(name: str) -> bool:
    """Moves this process into a control group of its own, so that ending the one it was started in spares it.

    The group is ``NAME-PID`` at the root of cgroup v2, and of systemd's v1 hierarchy. False where there is
    none, or it cannot be had. It stays when the process ends; the next call with this ``name``, in any
    process, removes it. Raises ``ValueError`` for a name that is not made of ASCII letters, digits, hyphens
    and underscores.
    """

def version() -> str:
    """The version of the compiled engine."""
