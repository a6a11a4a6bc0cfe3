"""A stand-in for the compiled engine: the names of ``_native.pyi``, with answers that a test sets.

It records its calls. It tests nothing of the engine, whose own tests are in tests/engine.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Callable

SIGNATURE = "c2VjcmV0c2lnbmF0dXJlZm9ydGVzdHM"


def sas_uri(disk: int = 0) -> str:
    """Returns a SAS URI as Azure Backup sends it, with a signature that must not be in any output."""
    return f"https://acct.blob.example/vhds/disk{disk}.vhd?sv=2019-12-12&sp=rw&sig={SIGNATURE}%3D"


@dataclass(frozen=True)
class PlannedFilesystem:
    mount_point: str = "/data"
    open_path: str = "/data"
    also_mounted_at: list[str] = field(default_factory=list)
    device: str = "8:17"
    source: str = "/dev/sdb1"
    filesystem_type: str = "ext4"
    level: int = 0


@dataclass(frozen=True)
class SkippedFilesystem:
    mount_point: str = "/boot/efi"
    device: str = "8:1"
    source: str = "/dev/sda1"
    filesystem_type: str = "vfat"
    reason: str = "not-freezable"
    why: str = "vfat cannot be frozen"


@dataclass(frozen=True)
class UnreadableMounts:
    path: str = "/proc/20/mountinfo"
    why: str = "permission denied"


@dataclass(frozen=True)
class Plan:
    filesystems: list[PlannedFilesystem] = field(default_factory=lambda: [PlannedFilesystem()])
    skipped: list[SkippedFilesystem] = field(default_factory=lambda: [SkippedFilesystem()])
    unreadable_mounts: list[UnreadableMounts] = field(default_factory=list)
    unmatched_excludes: list[str] = field(default_factory=list)
    unusable_excludes: list[tuple[str, str]] = field(default_factory=list)

    def without_filesystems(self) -> Plan:
        return replace(self, filesystems=[])

    def to_json(self) -> str:
        document = asdict(self)
        del document["unusable_excludes"]
        return json.dumps(document)


@dataclass(frozen=True)
class FilesystemOutcome:
    mount_point: str = "/data"
    device: str = "8:17"
    filesystem_type: str = "ext4"
    level: int = 0
    outcome: str = "thawed"
    frozen_at: str | None = "2026-11-22T10:26:21.819000Z"
    freeze_ms: float | None = 0.31
    thawed_at: str | None = "2026-11-22T10:26:21.820240Z"
    frozen_ms: float | None = 1.24
    thawed_by: str | None = "run"
    error: str | None = None


@dataclass(frozen=True)
class BlobOutcome:
    uri: str = "https://acct.blob.example/vhds/disk0.vhd"
    outcome: str = "created"
    snapshot: str | None = "2026-11-22T10:26:21.8190000Z"
    snapshot_uri: str | None = (
        "https://acct.blob.example/vhds/disk0.vhd?snapshot=2026-11-22T10:26:21.8190000Z"
    )
    http_status: int | None = 201
    error_code: str | None = None
    message: str | None = None
    retryable: bool = False
    attempts: int = 1
    answer_ms: float | None = 0.83
    answered_late: bool = False
    body: str | None = None


@dataclass(frozen=True)
class ApplicationOutcome:
    name: str = "orders"
    kind: str = "hook"
    required: bool = True
    outcome: str = "held"
    method: str | None = "/etc/vmsnapshot/orders"
    proof: str | None = "script"
    ready_ms: float | None = 3.1
    lock_wait_ms: float | None = 0.4
    held_ms: float | None = 9.6
    position: dict[str, str] = field(default_factory=dict)
    position_is: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    error_code: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class CommandOutcome:
    program: str = "/usr/bin/snap"
    outcome: str = "ended"
    exit_status: int | None = 0
    signal: int | None = None
    took_ms: float | None = 20.0
    output: bytes = b""
    output_is_truncated: bool = False


@dataclass(frozen=True)
class HostCall:
    uri: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    time_limit: float = 40.0


@dataclass(frozen=True)
class HostCallOutcome:
    uri: str = "http://168.63.129.16/metadata/recsvc/snapshot/dosnapshot"
    outcome: str = "answered"
    http_status: int | None = 200
    body: bytes = b'{"snapshotInfo": []}'
    body_is_complete: bool = True
    error_code: str | None = None
    message: str | None = None
    attempts: int = 1
    answer_ms: float | None = 0.83
    answered_late: bool = False


@dataclass(frozen=True)
class TimelineEvent:
    at_ms: float = 0.0
    event: str = "freeze-called"
    subject: str | None = "/data"
    detail: str | None = None


@dataclass(frozen=True)
class Mode:
    rcu_expedited: bool = True
    rcu_why_not: str | None = None
    parallel: bool = True


@dataclass(frozen=True)
class WatchdogOutcome:
    pid: int = 4242
    fired: str | None = None
    released: bool = True
    own_control_group: bool = True
    peak_memory_kib: int | None = 3000


@dataclass(frozen=True)
class Report:
    schema_version: int = 1
    run_id: str = "20261122T102621Z-4241"
    started_at: str = "2026-11-22T10:26:21.818900Z"
    consistent: bool = True
    consistency: str = "filesystem"
    why: str | None = None
    freeze_doubt: str | None = None
    freeze_doubt_code: str | None = None
    all_thawed: bool = True
    window_ms: float | None = 1.24
    thaw_timeout_ms: float = 10000.0
    mode: Mode = field(default_factory=Mode)
    filesystems: list[FilesystemOutcome] = field(default_factory=lambda: [FilesystemOutcome()])
    unreadable_mounts: list[UnreadableMounts] = field(default_factory=list)
    blobs: list[BlobOutcome] = field(default_factory=lambda: [BlobOutcome()])
    applications: list[ApplicationOutcome] = field(default_factory=list)
    command: CommandOutcome | None = None
    host_call: HostCallOutcome | None = None
    watchdog: WatchdogOutcome = field(default_factory=WatchdogOutcome)
    timeline: list[TimelineEvent] = field(default_factory=lambda: [TimelineEvent()])

    def to_json(self) -> str:
        document = asdict(self)
        # The document omits the bodies of answers.
        for part in [*document["blobs"], document["host_call"] or {}]:
            part.pop("body", None)
        (document["command"] or {}).pop("output", None)
        return json.dumps(document)


REFUSED = BlobOutcome(
    outcome="refused",
    snapshot=None,
    snapshot_uri=None,
    http_status=409,
    error_code="SnapshotCountExceeded",
    message="The snapshot count against this blob has been exceeded.",
)

FAILED_REPORT = Report(consistent=False, consistency="none", why="1 snapshot was refused", blobs=[REFUSED])

STUCK_REPORT = Report(
    consistent=False,
    consistency="none",
    why="`/data` did not thaw",
    all_thawed=False,
    window_ms=None,
    filesystems=[
        FilesystemOutcome(
            outcome="not-thawed", thawed_at=None, frozen_ms=None, thawed_by=None, error="input/output error"
        )
    ],
    blobs=[replace(REFUSED, outcome="unknown", http_status=None, error_code="NoAnswer", message=None)],
)


class Document:
    """A frozen class of the engine that is made from its JSON document: a key is an attribute."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._document[name]
        except KeyError:
            raise AttributeError(name) from None
        if isinstance(value, list):
            return [Document(item) if isinstance(item, dict) else item for item in value]
        return Document(value) if isinstance(value, dict) else value

    def to_json(self) -> str:
        return json.dumps(self._document)


NOTHING_FROZEN: dict[str, Any] = {
    "frozen": [],
    "runs": [],
    "unreadable": [],
    "rcu_expedited": {"value": 0, "held_by": None},
}

ONE_FROZEN: dict[str, Any] = {
    "frozen": [
        {
            "mount_point": "/data",
            "device": "8:17",
            "run_id": "run-1",
            "since": "2026-11-22T10:26:21.8Z",
            "state": "frozen",
        }
    ],
    "runs": [
        {
            "run_id": "run-1",
            "state": "abandoned",
            "started_at": "2026-11-22T10:26:21.7Z",
            "thaws_by": "2026-11-22T10:26:31.7Z",
            "pid": 11,
            "alive": False,
            "watchdog_pid": 12,
            "watchdog_alive": False,
            "fired": None,
            "finished": False,
            "filesystems": [
                {
                    "mount_point": "/data",
                    "device": "8:17",
                    "state": "frozen",
                    "thawed_by": None,
                    "frozen_at": "2026-11-22T10:26:21.8Z",
                    "thawed_at": None,
                }
            ],
        }
    ],
    "unreadable": [],
    "rcu_expedited": {"value": 1, "held_by": "run-1"},
}

NOTHING_THAWED: dict[str, Any] = {"thawed": [], "failed": [], "left_alone": [], "rcu_restored": False}


@dataclass(frozen=True)
class Mount:
    mount_id: int = 1
    parent_id: int = 0
    device: str = "8:1"
    root: str = "/"
    mount_point: str = "/"
    mount_options: str = "rw"
    filesystem_type: str = "ext4"
    source: str = "/dev/sda1"
    super_options: str = "rw"
    is_visible: bool = True
    is_on_local_block_device: bool = True
    block_devices: list[str] = field(default_factory=lambda: ["8:1"])


@dataclass(frozen=True)
class BlockDevice:
    number: str = "8:1"
    names: list[str] = field(default_factory=lambda: ["/dev/sda1"])
    directory: str = "/sys/devices/pci0/block/sda/sda1"
    parents: list[str] = field(default_factory=list)
    backing_file: str | None = None


@dataclass(frozen=True)
class Machine:
    mounts: list[Mount] = field(default_factory=lambda: [Mount()])
    block_devices: list[BlockDevice] = field(default_factory=lambda: [BlockDevice()])


class Session:
    def __init__(self, native: FakeNative) -> None:
        self._native = native
        self.run_id = "20261122T102621Z-4241"

    warnings: tuple[str, ...] = ()

    def run(self) -> Report:
        self._native.calls.append("run")
        if self._native.on_sync is not None:
            self._native.on_sync()
        self._native.prepare_arguments["progress"]("freeze")
        if self._native.on_run is not None:
            self._native.on_run()
        return self._native.report

    def close(self) -> None:
        self._native.calls.append("close")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Signatures:
    """Knows no signature, and finds only a plain ``sig=``."""

    def add(self, uri: str) -> None:
        pass

    def add_secret(self, secret: str) -> None:
        pass

    def removed_from(self, text: str) -> str:
        return re.sub(r"(sig=)[^&\s]+", r"\1...", text, flags=re.IGNORECASE)


class FakeNative(types.ModuleType):
    """The module ``vmsnapshot._native``, as far as the Python part uses it."""

    def __init__(self) -> None:
        super().__init__("vmsnapshot._native")
        self.PlannedFilesystem = PlannedFilesystem
        self.SkippedFilesystem = SkippedFilesystem
        self.UnreadableMounts = UnreadableMounts
        self.Plan = Plan
        self.HostCall = HostCall
        self.HostCallOutcome = HostCallOutcome
        self.ApplicationOutcome = ApplicationOutcome
        self.CommandOutcome = CommandOutcome
        self.FilesystemOutcome = FilesystemOutcome
        self.BlobOutcome = BlobOutcome
        self.TimelineEvent = TimelineEvent
        self.Mode = Mode
        self.WatchdogOutcome = WatchdogOutcome
        self.Report = Report
        self.Session = Session
        self.Signatures = Signatures
        self.Mount = Mount
        self.BlockDevice = BlockDevice
        self.Machine = Machine
        for document in (
            "FrozenFilesystem",
            "RcuStatus",
            "RunFilesystem",
            "RunStatus",
            "Status",
            "ThawFailed",
            "ThawLeftAlone",
            "ThawResult",
            "Thawed",
            "UnreadableLedger",
        ):
            setattr(self, document, Document)
        self.machine_result = Machine()
        self.calls: list[str] = []
        self.plan_result = Plan()
        self.plan_arguments: dict[str, Any] = {}
        self.prepare_blobs: list[str] = []
        self.prepare_arguments: dict[str, Any] = {}
        self.report = Report()
        self.status_document: dict[str, Any] = NOTHING_FROZEN
        self.thaw_document: dict[str, Any] = NOTHING_THAWED
        self.plan_error: Exception | None = None
        self.prepare_error: BaseException | None = None
        self.status_error: Exception | None = None
        self.thaw_error: Exception | None = None
        self.on_prepare: Callable[[Callable[[str], None]], None] | None = None
        # `on_sync` is called where the engine writes out dirty data, `on_run` where it opens the window.
        self.on_sync: Callable[[], None] | None = None
        self.on_run: Callable[[], None] | None = None

    def machine(self) -> Machine:
        return self.machine_result

    def plan(self, *, include: Any = (), exclude: Any = ()) -> Plan:
        self.calls.append("plan")
        self.plan_arguments = {"include": list(include), "exclude": list(exclude)}
        if self.plan_error is not None:
            raise self.plan_error
        return self.plan_result

    def prepare(self, plan: Plan, blobs: Any = (), **options: Any) -> Session:
        self.calls.append("prepare")
        assert plan is self.plan_result
        self.prepare_blobs = list(blobs)
        self.prepare_arguments = options
        if self.on_prepare is not None:
            self.on_prepare(options["progress"])
        if self.prepare_error is not None:
            raise self.prepare_error
        return Session(self)

    def trust_roots(self, *, ca_file: Any = None) -> list[bytes]:
        assert ca_file is None or ca_file
        return []

    def uri_without_query(self, uri: str) -> str:
        return uri.partition("?")[0]

    def status(self) -> Document:
        if self.status_error is not None:
            raise self.status_error
        return Document(self.status_document)

    def thaw(self) -> Document:
        if self.thaw_error is not None:
            raise self.thaw_error
        return Document(self.thaw_document)

    def give_control_group(self, pid: int, role: str) -> bool:
        assert pid > 0
        self.calls.append(f"give_control_group {role}")
        return True

    def leave_control_group(self) -> None:
        self.calls.append("leave_control_group")

    def version(self) -> str:
        return "0.1.0"


def is_compiled() -> bool:
    """Returns whether ``vmsnapshot._native`` is the compiled engine, and neither a stand-in nor missing."""
    try:
        return hasattr(importlib.import_module("vmsnapshot._native"), "__file__")
    except ImportError:
        return False


def make_importable() -> None:
    """Makes ``import vmsnapshot`` work where the engine is not compiled.

    Where it is compiled this does nothing, and each test that wants the stand-in puts it into
    place.
    """
    try:
        importlib.import_module("vmsnapshot")
    except ImportError:
        install()


def install() -> FakeNative:
    """Puts the stand-in into the compiled module's place, before ``vmsnapshot`` is imported."""
    native = FakeNative()
    sys.modules["vmsnapshot._native"] = native
    return native
