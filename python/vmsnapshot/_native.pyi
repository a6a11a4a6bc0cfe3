"""Types of the compiled engine, ``vmsnapshot._native``.

Paths of a plan are ``str`` with ``surrogateescape``, so that no byte of a mount point is lost. A report is
for people, and writes such a byte as ``\\xNN``. Arguments give lengths of time in seconds (``float``).
Results give them in milliseconds, under names that end in ``_ms``. Instants are text in UTC. Every class is
frozen. Errors are the classes of ``vmsnapshot.errors``.
"""

from collections.abc import Callable, Sequence
from typing import Literal, final

from typing_extensions import TypeAlias

from vmsnapshot.quiesce import Application

# The names of all values that a program may have to tell apart. `names()` returns the same lists from the
# compiled module, and a test compares the two.

ErrorCode: TypeAlias = Literal[
    "bad-uri",
    "unsigned-uri",
    "bad-sas",
    "expired-sas",
    "sas-not-yet-valid",
    "sas-permission",
    "duplicate-blob",
    "bad-host-call",
    "bad-ca-file",
    "no-trust-roots",
    "tls-configuration",
    "bad-proxy",
    "bad-request",
    "resolve-failed",
    "connect-failed",
    "connect-timeout",
    "tls-failed",
    "proxy-failed",
    "bad-metadata",
    "open-failed",
    "mount-changed",
    "mount-vanished",
    "not-writable",
    "freeze-would-wait",
    "no-watchdog",
    "not-privileged",
    "bad-thaw-timeout",
    "bad-freeze-timeout",
    "bad-time-limit",
    "too-many-filesystems",
    "unreadable",
    "bad-pattern",
    "pattern-matches-nothing",
    "no-such-mount",
    "not-freezable",
    "another-run",
    "left-frozen",
    "state-unusable",
    "bad-command",
    "not-quiesced",
    "no-resources",
    "interrupted",
]
ErrorKind: TypeAlias = Literal[
    "arguments",  # another argument, SAS or privilege is needed
    "system",  # something on this machine is in the way
    "network",  # the network or a server on it failed
    "another-run",  # another run is under way
    "left-frozen",  # an earlier run left something frozen
    "interrupted",
]
ErrorSubject: TypeAlias = Literal[
    "callee",  # a blob or the host cannot be read from its URI, called or reached
    "metadata",
    "filesystem",  # a planned filesystem cannot be opened, or a different one is mounted there now
    "watchdog",
    "application",  # an application is not ready, or does not hold still
    "run",  # the run as a whole
]
Phase: TypeAlias = Literal["open-filesystems", "connect", "start-watchdog", "sync", "quiesce", "freeze"]
FilesystemResult: TypeAlias = Literal[
    "thawed",
    "thawed-by-watchdog",
    "thawed-by-another",
    "frozen-by-another",
    "not-freezable",
    "freeze-failed",
    "not-opened",
    "freeze-would-wait",  # for a long-running job of the kernel, such as a btrfs scrub
    "not-writable",  # it can no longer be written, so it needs no freeze
    "unmounted",
    "mounted-since",  # it was mounted after the last look before the window
    "not-frozen",
    "freeze-hung",
    "not-thawed",
]
ThawedBy: TypeAlias = Literal["run", "watchdog", "another"]
BlobResult: TypeAlias = Literal["created", "refused", "unknown"]
CommandResult: TypeAlias = Literal[
    "ended",
    "too-late",  # it had not ended when everything had to thaw
    "not-run",
]
HostCallResult: TypeAlias = Literal["answered", "not-sent", "unknown"]
ApplicationResult: TypeAlias = Literal[
    "held",  # from before the first FIFREEZE until after the last FITHAW, and that is proven
    "not-covered",  # some of its data lie on a filesystem that the run did not freeze
    "lost",  # it held still before the first FIFREEZE, and perhaps not to the end
    "not-quiesced",
    "not-ready",
]
Proof: TypeAlias = Literal["session", "script"]
PositionIs: TypeAlias = Literal["exact", "lower-bound"]
Consistency: TypeAlias = Literal["application", "filesystem", "crash", "none"]
FreezeDoubt: TypeAlias = Literal[
    "not-thawed",  # something is still frozen
    "freeze-hung",  # a FIFREEZE has not returned
    "thawed-by-watchdog",
    "thawed-by-another",
    "frozen-by-another",  # another program had frozen it: FIFREEZE answered EBUSY
    "freeze-failed",  # FIFREEZE answered another error
    "not-freezable",  # the kernel cannot freeze a filesystem that can be written
    "not-opened",  # a filesystem that may be writable could not be opened
    "freeze-would-wait",  # a freeze would have waited for a long-running job of the kernel
    "freeze-late",  # not everything was frozen by the last moment for calls, or before the run was stopped
    "window-broke-off",  # a fault of this program ended the window
    "watchdog-fired",
    "watchdog-lost",
    "mounted-since",  # a writable filesystem was mounted after the last look before the window
    "nothing-frozen",  # nothing was planned
    "answered-late",  # the answer that confirms a snapshot came after the window
    "mounts-unreadable",  # a table of mounts could not be read, so something may be missing from the plan
]
FireReason: TypeAlias = Literal["parent-gone", "deadline", "told", "fault"]
TimelineEventKind: TypeAlias = Literal[
    "application-quiesced",
    "application-released",
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
    "over",  # nothing that it froze can still be frozen
    "of-another-version",  # another version wrote its ledger, and something may be frozen
]

@final
class PlannedFilesystem:
    """One superblock that a run freezes."""

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
    """One mounted superblock that a run leaves out. ``reason`` is a stable code, ``why`` a sentence."""

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
class UnreadableMounts:
    """A table of mounts, or a line of it, that could not be read. The plan may lack what it shows."""

    @property
    def path(self) -> str: ...
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
    def unreadable_mounts(self) -> list[UnreadableMounts]:
        """What could not be read about the mounts. If not empty, no run of this plan is consistent."""
    @property
    def unmatched_excludes(self) -> list[str]: ...
    @property
    def unusable_excludes(self) -> list[tuple[str, str]]:
        """Exclude patterns that cannot be used and were skipped, each with what is wrong. Not in the JSON."""
    def without_filesystems(self) -> Plan:
        """Returns this plan without filesystems. A run of it sends its calls and freezes nothing."""
    def to_json(self) -> str: ...

@final
class Mount:
    """One mount of this process's mount namespace, as ``/proc/self/mountinfo`` has it.

    ``device`` is the superblock's major:minor, which all its mounts share. ``is_visible`` is false if another
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
    """One block device. ``number`` is its major:minor.

    ``directory`` is its place in sysfs, with links resolved. ``names`` are its paths (``/dev/dm-0``,
    ``/dev/mapper/data``). ``parents`` are the numbers of the devices right below it: the disk of a partition,
    the slaves of dm, md and bcache. ``backing_file`` is the file of a loop device.
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
    """What was mounted, and which block devices there were, when this was read."""

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

        The filesystems of ``exclude_mounts`` are left out even if a pattern includes them. An unusable
        exclude pattern is an error with ``refuse``. With ``report`` it is skipped and listed in
        ``Plan.unusable_excludes``.
        """

@final
class HostCall:
    """One POST that a run sends inside its window, to a host that takes the snapshots by itself.

    ``uri`` is ``http://HOST[:PORT]/PATH[?QUERY]``. The call never uses a proxy. ``headers`` are sent as they
    are, and their names keep their case. ``Host`` and ``Content-Length`` must not be among them, because the
    engine sets them. ``time_limit`` (seconds, above 0, up to 3600) is how long the run waits for an answer.
    The window may end earlier. Raises ``PrepareError`` (``bad-host-call``, ``bad-time-limit``). Its ``repr``
    has no secret.
    """

    def __new__(
        cls, uri: str, *, headers: Sequence[tuple[str, str]], body: bytes, time_limit: float = 40.0
    ) -> HostCall: ...
    @property
    def uri(self) -> str:
        """The URI without its query."""

@final
class FilesystemOutcome:
    """The result of one filesystem."""

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
class ApplicationOutcome:
    """One application of a run."""

    @property
    def name(self) -> str:
        """What the caller calls it."""
    @property
    def kind(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def outcome(self) -> ApplicationResult: ...
    @property
    def method(self) -> str | None:
        """The statement that held it still, or the program that did."""
    @property
    def proof(self) -> Proof | None:
        """What shows that it was held. ``session``: the same open session answered before the freeze and
        after the thaw. ``script``: a program said so."""
    @property
    def ready_ms(self) -> float | None: ...
    @property
    def lock_wait_ms(self) -> float | None:
        """How long it took to hold still, from when it was asked."""
    @property
    def held_ms(self) -> float | None:
        """How long it was held, up to its release."""
    @property
    def position(self) -> dict[str, str]:
        """Where its log stood while it was held, by the names that its vendor gives."""
    @property
    def position_is(self) -> PositionIs | None:
        """``exact``: the snapshot has everything up to the position and nothing after it. ``lower-bound``:
        everything up to it, and perhaps more."""
    @property
    def files(self) -> dict[str, str]:
        """What a restore needs beside the snapshots, by name."""
    @property
    def error_code(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...

@final
class BlobOutcome:
    """The result of one snapshot request. ``uri`` is without its query."""

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
    def answered_late(self) -> bool:
        """The answer came after the window. A snapshot that it names may have been taken after the thaw."""
    @property
    def body(self) -> str | None:
        """The body of a refusal, 4 KiB at most, with signatures redacted. It is not in the JSON."""

@final
class CommandOutcome:
    """The command of a run."""

    @property
    def program(self) -> str:
        """Its path, without the arguments."""
    @property
    def outcome(self) -> CommandResult: ...
    @property
    def exit_status(self) -> int | None: ...
    @property
    def signal(self) -> int | None:
        """The signal that ended it."""
    @property
    def took_ms(self) -> float | None:
        """How long it ran, up to its end or to the thaw."""
    @property
    def output(self) -> bytes:
        """What it wrote to standard output and standard error, up to 16 MiB. Not in the JSON document."""
    @property
    def output_is_truncated(self) -> bool: ...

@final
class HostCallOutcome:
    """The result of the host call. ``uri`` is without its query.

    ``answered``: the head of an answer came, and ``http_status`` is its status. ``not-sent``: no part of the
    call was written. ``unknown``: the call was written at least in part, and no answer came in time. There
    may be snapshots, and ``error_code`` is ``NoAnswer``, ``ConnectionLost``, ``BadAnswer`` or
    ``AnswerTooLong``.
    """

    @property
    def uri(self) -> str: ...
    @property
    def outcome(self) -> HostCallResult: ...
    @property
    def http_status(self) -> int | None: ...
    @property
    def body(self) -> bytes:
        """The answer's body, 1 MiB at most. It may hold secrets and is not in the JSON."""
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
    @property
    def answered_late(self) -> bool:
        """The answer came after the window. Its snapshots may have been taken after the thaw."""

@final
class TimelineEvent:
    """One moment of a run. ``at_ms`` counts from the start of the window.

    ``subject`` is the mount point or the blob that the event is about. ``detail`` has the system's words for
    a sync that failed.
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
    """How the run made its window short."""

    @property
    def rcu_expedited(self) -> bool: ...
    @property
    def rcu_why_not(self) -> str | None: ...
    @property
    def parallel(self) -> bool: ...

@final
class WatchdogOutcome:
    """The watchdog's part in the run."""

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
        """Why it is not certain that everything was frozen during all calls; ``None`` if it is."""
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
    def unreadable_mounts(self) -> list[UnreadableMounts]: ...
    @property
    def blobs(self) -> list[BlobOutcome]: ...
    @property
    def applications(self) -> list[ApplicationOutcome]: ...
    @property
    def command(self) -> CommandOutcome | None: ...
    @property
    def host_call(self) -> HostCallOutcome | None: ...
    @property
    def watchdog(self) -> WatchdogOutcome: ...
    @property
    def timeline(self) -> list[TimelineEvent]: ...
    def to_json(self) -> str:
        """Returns the document that ``--json`` and ``--report`` write; see docs/documents.md."""

@final
class Session:
    """A prepared run. The watchdog runs, the directories and connections are open, and nothing is frozen."""

    @property
    def run_id(self) -> str: ...
    @property
    def warnings(self) -> list[str]:
        """What went otherwise than configured while connecting: a proxy that was not used, and why.

        ``run`` may add to it, because it replaces connections that were closed meanwhile.
        """

    def run(self) -> Report:
        """Freezes, snapshots and thaws. Works once, and never raises after the first freeze.

        Blocking: after the thaw, it reads the answers that are still to come. This takes what is left of the
        time limits of the calls, and 5.1 s at most.
        """
    def close(self) -> None:
        """Releases everything; nothing is frozen. Does nothing after ``run``."""
    def __enter__(self) -> Session: ...
    def __exit__(self, *exc_info: object) -> None: ...

def plan(*, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Plan:
    """Plans what a run would freeze. Raises ``PlanError``.

    It reads mountinfo and sysfs, and asks loop devices for their files. It opens no mount, and stats none but
    those of btrfs if a loop device's file lies on one.
    """

def prepare(
    plan: Plan,
    blobs: Sequence[str] = (),
    *,
    metadata: dict[str, str] | None = None,
    blob_metadata: Sequence[dict[str, str]] = (),
    host_call: HostCall | None = None,
    unusable_blobs: Literal["refuse", "report"] = "refuse",
    thaw_timeout: float = 10.0,
    freeze_timeout: float = 5.0,
    call_timeout: float = 10.0,
    sync_timeout: float | None = 30.0,
    connect_timeout: float = 10.0,
    ca_file: str | None = None,
    proxy: str | None = None,
    unusable_proxy: Literal["refuse", "direct"] = "refuse",
    expedite_rcu: bool = True,
    progress: Callable[[Phase], object] | None = None,
    quiescers: Sequence[Application] = (),
    command: Sequence[str] = (),
) -> Session:
    """Does all that can be done before the window, and freezes nothing. Raises ``PrepareError``.

    ``metadata`` is set on every snapshot. ``blob_metadata``, if given, has one mapping per blob, which is set
    on the snapshot of that blob as well. ``host_call`` is sent together with the snapshot requests. A host
    that cannot be reached is a ``PrepareError`` as for a blob, and its message names the host call.

    ``unusable_blobs`` says what happens to a blob if its URI or SAS cannot be used, if it was given twice, or
    if its server cannot be reached within ``connect_timeout``. With ``refuse``, the first such blob raises
    ``PrepareError``. With ``report``, the run sends no request for such a blob and takes the other snapshots.
    The blob's ``BlobOutcome`` is ``refused`` with 0 attempts and the code and message of the error. Its
    ``uri`` is empty if it could not be read. The service then judges the times and permissions of a SAS,
    because this machine's clock may be wrong. If no blob is usable and there is no host, the first blob's
    error is raised even then.

    A freeze that is not complete within ``freeze_timeout`` ends the window: no request is sent, everything
    thaws, and the report names the filesystem that was slow. If the thaw timeout leaves less time for calls,
    that limit applies.

    ``unusable_proxy`` says what happens if the proxy refuses or is down. With ``refuse``, the blobs count as
    unreachable. With ``direct``, they are tried directly once, within the same time, and ``Session.warnings``
    says so. A proxy that cannot be read from ``proxy`` is a ``PrepareError`` in both cases.

    ``call_timeout`` is how long the service of a blob may take to answer, with both attempts together. A host
    call has its own ``time_limit``. The window may end earlier. The answer is then read after the thaw, up to
    5 s later, and ``answered_late`` is true.

    ``quiescers`` are held still while the filesystems are frozen, in this order, and released after the thaw
    in reverse order. One that is ``required`` and fails before the freeze is a ``PrepareError`` with its own
    code, here or of ``Session.run``, and nothing is frozen.

    ``command`` is a program with its arguments that runs while everything is frozen, beside the requests if
    there are any. It is started before the freeze and waits at a gate. It counts like a snapshot: the set is
    consistent only if it ended with status 0 before the thaw. What is still running then is killed with its
    process group. It must not write to a frozen filesystem: its output goes to memory.

    ``progress`` is called with the name of each phase at its start. ``freeze`` is the last phase.
    ``progress`` is never called inside the window.
    """

def trust_roots(*, ca_file: str | None = None) -> list[bytes]:
    """Returns the certificates that the engine trusts, in DER: the system's, and those of ``ca_file``.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace the system's. Raises ``PrepareError``.
    """

def machine() -> Machine:
    """Reads what `plan` reads. Raises ``PlanError``."""

@final
class FrozenFilesystem:
    """One filesystem that a run of vmsnapshot has frozen, or may have frozen."""

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
        """The deadline by which everything is to be thawed; ``None`` before its window."""
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
        """Returns the document of ``vmsnapshot status --json``; see docs/documents.md."""

def status() -> Status:
    """Reads ``/run/vmsnapshot`` and touches no filesystem. Raises ``ThawError``.

    The kernel cannot be asked whether a filesystem is frozen, so this knows about runs of vmsnapshot only.
    """

@final
class Thawed:
    """One filesystem that ``thaw`` thawed, or found thawed."""

    @property
    def mount_point(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def run_id(self) -> str: ...

@final
class ThawFailed:
    """One filesystem that may still be frozen, and why it could not be thawed."""

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
    """A run or an unreadable file that ``thaw`` left alone, and why.

    ``mount_point`` has its mount points, separated by commas.
    """

    @property
    def mount_point(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def why(self) -> str: ...

@final
class ThawResult:
    """What ``thaw`` did."""

    @property
    def thawed(self) -> list[Thawed]: ...
    @property
    def failed(self) -> list[ThawFailed]: ...
    @property
    def left_alone(self) -> list[ThawLeftAlone]: ...
    @property
    def rcu_restored(self) -> bool: ...
    def to_json(self) -> str:
        """Returns the document of ``vmsnapshot thaw --json``; see docs/documents.md."""

def thaw() -> ThawResult:
    """Thaws what earlier runs left frozen and can no longer thaw themselves. Leaves everything else alone.

    Blocking: five seconds, if FITHAW calls do not return. Raises ``ThawError`` if nothing could be tried.
    """

@final
class Signatures:
    """The signatures of SAS URIs, to keep them out of what is printed. Of more than 256 the last are kept."""

    def __new__(cls) -> Signatures: ...
    def add(self, uri: str) -> None:
        """Adds the signature of a SAS URI, which may be malformed."""

    def add_secret(self, secret: str) -> None:
        """Adds another secret that a server may repeat, such as a password."""

    def removed_from(self, text: str) -> str:
        """Replaces the value of every ``sig=``, and every part of a known signature, with ``...``.

        In every encoding of URIs, JSON and XML, and in several layers of them. A part has eight letters and
        digits at least. A shorter signature is removed behind ``sig=`` only.
        """

def uri_without_query(uri: str) -> str:
    """Returns what may be printed of a URI: all but its query.

    A malformed URI, also one whose path has a ``sig=``, ends at its first unusual character.
    """

def error_codes() -> dict[ErrorCode, ErrorSubject]:
    """Returns the code of every error of the engine, with what could not be prepared.

    An error of a plan or a thaw has no `subject`. Its code is that of a run as a whole.
    """

def names() -> dict[str, list[str]]:
    """Returns the names of all values of the types above (``"Phase"``, ...), in their order."""

def give_control_group(pid: int, role: str) -> bool:
    """Moves a child of this process into a control group of its own.

    The child then survives if the group that it was started in is ended as a whole. The new group is
    ``vmsnapshot-ROLE-PID`` at the root of cgroup v2, and of systemd's v1 hierarchy. Returns false if the
    machine has neither, or if the child cannot be moved. The group stays when the child ends, unless it calls
    ``leave_control_group``. Removes the groups of processes that are gone. Raises ``ValueError`` unless
    ``role`` consists of lower-case ASCII letters.

    Blocking: a process that moves to another group waits for an RCU grace period, some 10 ms.
    """

def leave_control_group() -> None:
    """Moves this process from its own control group to the root, and removes that group.

    Also removes the groups of processes that are gone. Does only that if this process has no group of its
    own. Call this at the end of a process.
    """

def version() -> str:
    """Returns the version of the compiled engine."""
