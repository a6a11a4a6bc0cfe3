"""Maps the engine's errors and doubts to the codes of Azure Backup.

The engine is a double, because a real kernel does not fail on request. ``tests/extension`` uses the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, cast

import pytest

import vmsnapshot
from vmsnapshot.errors import PlanError, PrepareError
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.freeze import attempts, freezing
from vmsnapshot.handler.freeze.attempts import Attempts, Calls, EndedEarlyError
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.lock import LockHeldError
from vmsnapshot.handler.freeze.quiescing import Quiescing
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.connections import Connections
from vmsnapshot.handler.network.host import PreSnapshot
from vmsnapshot.handler.network.proxies import Proxies
from vmsnapshot.handler.report.outcome import Attempt, FreezeResult
from vmsnapshot.handler.report.telemetry import Telemetry
from vmsnapshot.handler.secret import SasUri, Secret
from vmsnapshot.handler.settings.wire import Command, CustomSettings, IncludedDisks, Job, Pair, Settings
from vmsnapshot.interruptions import Interruptions

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorSubject

# The fixtures replace it in `vmsnapshot`.
MACHINE_PLAN = vmsnapshot.plan

URI = "https://account.blob.core.windows.net/c/b.vhd?sv=2018-03-28&sig=AAAA"
SETTINGS = Settings(
    job=Job(task_id="task"),
    command=Command.SNAPSHOT,
    backup_metadata=(Pair("Count", 7), Pair("IsLast", True), Pair("Nothing", None)),
    snapshot_task_token=Secret(""),
    disks=IncludedDisks(luns=(-1,)),
    blobs=(SasUri(URI),),
)
CRASH_CONSISTENT = replace(
    SETTINGS,
    custom=CustomSettings(is_managed_vm=True, can_take_crash_consistent_snapshot=True, backup_retry_count=1),
)


@dataclass(frozen=True)
class Blob:
    """A blob's outcome."""

    uri: str = URI.partition("?")[0]
    outcome: str = "created"
    snapshot_uri: str | None = "https://h/b?snapshot=t"
    http_status: int | None = 201
    error_code: str | None = None
    message: str | None = None
    body: str | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Report:
    """An engine's report."""

    freeze_doubt_code: str | None = None
    freeze_doubt: str | None = None
    why: str | None = None
    blobs: tuple[Blob, ...] = (Blob(),)
    applications: tuple[Any, ...] = ()
    host_call: Any = None
    filesystems: tuple[Any, ...] = ()
    timeline: tuple[Any, ...] = ()
    window_ms: float | None = 1.5


UNSENT = replace(Blob(), outcome="refused", snapshot_uri=None, http_status=None, attempts=0)


@dataclass(frozen=True)
class Plan:
    """A plan without filesystems, so that no lock is taken."""

    filesystems: tuple[Any, ...] = ()

    def without_filesystems(self) -> Plan:
        return self


@dataclass
class Session:
    """A prepared run."""

    report: Report

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        pass


@dataclass
class Engine:
    """A double of `Freezing`. Every `prepare` gives the next answer."""

    answers: list[Report | Exception]
    prepared: list[dict[str, Any]] = field(default_factory=list)
    interruptions: Interruptions = field(default_factory=Interruptions)
    log: Log = field(default_factory=lambda: Log(None, "test"))

    def plan(self, *_: object) -> Plan:
        return Plan()

    def prepare(self, _plan: object, **calls: Any) -> Session:
        self.prepared.append(calls)
        answer = self.answers[len(self.prepared) - 1]
        if isinstance(answer, Exception):
            raise answer
        return Session(answer)

    def run(self, session: Session) -> Report:
        return session.report


def made_by(
    engine: Engine,
    *,
    settings: Settings = SETTINGS,
    telemetry: Telemetry | None = None,
    host_address: str = "127.0.0.1",
) -> Attempts:
    """The attempts of a job with this engine. They send nothing outside the window."""
    connections = Connections(Background(), Proxies({}), host_address)
    quiescing = Quiescing()
    return Attempts(
        settings,
        cast(Freezing, engine),
        connections,
        telemetry or Telemetry(),
        quiescing,
        before_freeze=lambda: None,
    )


def error(subject: ErrorSubject) -> PrepareError:
    return PrepareError(
        "could not do it", code="a-code", kind="system", subject=subject, hint="do this instead"
    )


@pytest.fixture(autouse=True)
def nothing_is_read_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmsnapshot, "machine", lambda: None)
    monkeypatch.setattr(vmsnapshot, "plan", Plan)


@pytest.fixture
def run() -> Any:
    """Makes one attempt by the guest with an engine that gives these answers."""

    def make(*answers: Report | Exception, settings: Settings = SETTINGS) -> tuple[Attempt, Engine]:
        engine = Engine(list(answers))
        return made_by(engine, settings=settings).by_guest(()), engine

    return make


@pytest.mark.parametrize(
    ("code", "sent", "unsent"),
    [
        (None, FreezeResult.HELD, FreezeResult.HELD),
        ("nothing-frozen", FreezeResult.NOT_WANTED, FreezeResult.NOT_WANTED),
        ("freeze-failed", FreezeResult.FAILED, FreezeResult.FAILED),
        ("not-freezable", FreezeResult.FAILED, FreezeResult.FAILED),
        ("not-opened", FreezeResult.UNABLE_TO_OPEN, FreezeResult.UNABLE_TO_OPEN),
        ("freeze-would-wait", FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
        ("mounts-unreadable", FreezeResult.FAILED, FreezeResult.FAILED),
        ("frozen-by-another", FreezeResult.FAILED, FreezeResult.FAILED),
        ("freeze-late", FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
        ("freeze-hung", FreezeResult.TIMED_OUT, FreezeResult.TIMED_OUT),
        ("thawed-by-watchdog", FreezeResult.BROKEN, FreezeResult.TIMED_OUT),
        ("watchdog-fired", FreezeResult.BROKEN, FreezeResult.TIMED_OUT),
        ("thawed-by-another", FreezeResult.BROKEN, FreezeResult.FAILED),
        ("not-thawed", FreezeResult.BROKEN, FreezeResult.FAILED),
        ("watchdog-lost", FreezeResult.BROKEN, FreezeResult.FAILED),
        ("window-broke-off", FreezeResult.BROKEN, FreezeResult.FAILED),
        ("mounted-since", FreezeResult.BROKEN, FreezeResult.FAILED),
        ("answered-late", FreezeResult.BROKEN, FreezeResult.FAILED),
    ],
)
def test_doubt_about_the_freeze_is_one_of_freeze_or_thaw(
    run: Any, code: str | None, sent: FreezeResult, unsent: FreezeResult
) -> None:
    assert run(Report(code))[0].freeze is sent
    assert run(Report(code, blobs=(UNSENT,)))[0].freeze is unsent


def test_error_of_a_prepared_run_before_its_freeze_is_like_one_of_its_preparation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_session: object) -> Report:
        raise error("filesystem")

    engine = Engine([Report()])
    monkeypatch.setattr(engine, "run", fails)
    assert made_by(engine).by_guest(()).freeze is FreezeResult.UNABLE_TO_OPEN


def test_signal_during_the_wait_for_the_lock_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def held(*, give_up: Callable[[], bool]) -> None:
        assert give_up()
        raise LockHeldError("could not lock", code="lock-held", kind="another-run")

    engine = Engine([Report()])
    engine.interruptions.noted.append("SIGTERM")
    monkeypatch.setattr(engine, "plan", lambda *_: Plan(("/data",)))
    monkeypatch.setattr(engine, "lock", lambda: Freezing.lock(cast(Freezing, engine)), raising=False)
    monkeypatch.setattr(freezing, "SafeFreezeLock", held)
    with pytest.raises(KeyboardInterrupt):
        made_by(engine).by_guest(())
    assert engine.prepared == []


@pytest.mark.parametrize(
    ("subject", "result"), [("filesystem", FreezeResult.UNABLE_TO_OPEN), ("run", FreezeResult.FAILED)]
)
def test_run_that_cannot_be_prepared_is_a_failed_freeze(
    run: Any, subject: ErrorSubject, result: FreezeResult
) -> None:
    attempt, _ = run(error(subject))
    assert (attempt.freeze, attempt.items) == (result, ())


def test_plan_that_cannot_be_made_is_a_failed_freeze(run: Any) -> None:
    attempt, _ = run(PlanError("could not read", code="unreadable", kind="system"))
    assert attempt.freeze is FreezeResult.FAILED


def test_blobs_of_which_none_can_be_used_are_failed_disks_without_a_freeze(run: Any) -> None:
    attempt, _ = run(error("callee"))
    assert attempt.freeze is FreezeResult.NOT_TRIED
    [item] = attempt.items
    assert (item.is_successful, item.error_message, item.blob_uri) == (False, None, URI.partition("?")[0])


@pytest.mark.parametrize(
    ("subject", "expected", "message"),
    [
        (
            "watchdog",
            Code.ENGINE_NOT_FOUND,
            "could not do it; do this instead StatusCode.FailedSafeFreezeBinaryNotFound,",
        ),
        ("metadata", Code.PARAMETERS, "could not do it; do this instead "),
    ],
)
def test_some_errors_end_the_job_with_a_code_of_their_own(
    run: Any, subject: ErrorSubject, expected: Code, message: str
) -> None:
    with pytest.raises(EndedEarlyError) as raised:
        run(error(subject))
    assert raised.value.outcome.run_code is expected
    assert raised.value.outcome.message == message


def test_every_subject_of_an_error_and_every_doubt_has_a_result(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    names = vmsnapshot._native.names()
    assert set(attempts._UNPREPARED) == set(names["ErrorSubject"])
    assert set(attempts._FREEZE_RESULTS) == {None, *names["FreezeDoubt"]}


def test_failed_freeze_is_followed_by_calls_without_one_where_the_job_allows_it(run: Any) -> None:
    attempt, engine = run(Report("freeze-failed", blobs=(UNSENT,)), Report(), settings=CRASH_CONSISTENT)
    assert attempt.freeze is FreezeResult.FAILED
    assert [item.succeeded for item in attempt.items] == [True]
    assert len(engine.prepared) == 2


@pytest.mark.parametrize("settings", [SETTINGS, CRASH_CONSISTENT])
def test_snapshots_beside_what_the_kernel_cannot_freeze_are_reported_and_not_taken_twice(
    run: Any, settings: Settings
) -> None:
    attempt, engine = run(Report("not-freezable"), settings=settings)
    assert attempt.freeze is FreezeResult.FAILED
    assert [item.succeeded for item in attempt.items] == [True]
    assert len(engine.prepared) == 1


def test_second_run_that_cannot_be_prepared_leaves_the_first_ones_code(run: Any) -> None:
    attempt, _ = run(error("filesystem"), error("run"), settings=CRASH_CONSISTENT)
    assert (attempt.freeze, attempt.items) == (FreezeResult.UNABLE_TO_OPEN, ())


def test_metadata_is_sent_as_text(run: Any) -> None:
    _, engine = run(Report())
    assert engine.prepared[0]["metadata"] == {"Count": "7", "IsLast": "true", "Nothing": ""}
    assert engine.prepared[0]["blobs"] == (URI,)


OTHER = URI.replace("/b.vhd", "/other.vhd")


def test_blob_that_is_named_twice_is_sent_once_and_reported_twice() -> None:
    blobs = (SasUri(URI), SasUri(OTHER), SasUri(URI))
    second = replace(Blob(), snapshot_uri="https://h/other?snapshot=t")
    engine = Engine([Report(blobs=(Blob(), second))])
    attempt = made_by(engine, settings=replace(SETTINGS, blobs=blobs)).by_guest(("a", "b", "a"))
    assert engine.prepared[0]["blobs"] == (URI, OTHER)
    assert engine.prepared[0]["blob_metadata"] == (
        {"DiskEncryptionSettings": "a"},
        {"DiskEncryptionSettings": "b"},
    )
    first, other, again = attempt.items
    assert first == again
    assert other.snapshot_uri == "https://h/other?snapshot=t"


@pytest.mark.parametrize(
    ("given", "again", "is_same"),
    [
        ("https://localhost/c/b?sig=a", "https://LOCALHOST:443/c/b?sig=b", True),
        ("https://localhost/c/b?sig=a", " HTTPS://localhost:0443/c/b?sig=a", True),
        ("https://localhost/c/b?sig=a", "http://localhost/c/b?sig=a", True),
        ("http://localhost:1/c/b?sig=a", "https://localhost:1/c/b?sig=a", True),
        ("https://[::1]/c/b?sig=a", "https://[::1]:443/c/b?sig=a", True),
        ("https://localhost/c/b?sig=a", "https://localhost/c/B?sig=a", False),
        ("https://localhost/c/b?sig=a", "https://localhost:444/c/b?sig=a", False),
        ("https://localhost/c/b?sig=a", "http://localhost:443/c/b?sig=a", False),
        ("https://localhost/c/sig=a?sig=a", "https://localhost/c/sig=b?sig=a", False),
        ("https://localhost/c/b?sig=a", f"https://localhost:{'9' * 5000}/c/b?sig=a", False),
    ],
)
def test_blob_counts_as_named_twice_exactly_if_the_engine_says_so(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
    given: str,
    again: str,
    is_same: bool,
) -> None:
    engine = Engine([Report(blobs=(Blob(), Blob()))])
    made_by(engine, settings=replace(SETTINGS, blobs=(SasUri(given), SasUri(again)))).by_guest(())
    assert len(engine.prepared[0]["blobs"]) == (1 if is_same else 2)
    # It compares the blobs before it connects to one.
    with pytest.raises(PrepareError) as raised:
        vmsnapshot.prepare(MACHINE_PLAN().without_filesystems(), [given, again], connect_timeout=1.0)
    assert (raised.value.code == "duplicate-blob") is is_same


NAME = URI.partition("?")[0]
CAUSES: list[tuple[Report | Exception, str]] = [
    (error("run"), "could not prepare the freeze: could not do it; do this instead"),
    (error("filesystem"), "could not prepare the freeze: could not do it; do this instead"),
    (error("callee"), "could not do it; do this instead"),
    (PlanError("no plan", code="unreadable", kind="system"), "could not plan what to freeze: no plan"),
    (Report("freeze-failed", freeze_doubt="`/a` failed", why="other", blobs=(UNSENT,)), "`/a` failed"),
    (Report("thawed-by-another", freeze_doubt="`/a` was thawed", why="other"), "`/a` was thawed"),
    (
        Report(blobs=(replace(UNSENT, error_code="connect-failed", message="could not connect for `h/b`"),)),
        f"no known snapshot of `{NAME}`: could not connect for `h/b`",
    ),
    (
        Report(blobs=(replace(UNSENT, error_code="tls-failed", message=f"no TLS for blob `{NAME}`"),)),
        f"no TLS for blob `{NAME}`",
    ),
    (
        Report(
            blobs=(Blob(outcome="refused", http_status=503, error_code="ServerBusy", message="Is\nbusy."),)
        ),
        f"no known snapshot of `{NAME}`: the service answered 503 ServerBusy: Is busy.",
    ),
    (Report(), ""),
]


@pytest.mark.parametrize(("answer", "cause"), CAUSES, ids=lambda value: str(value)[:40])
def test_attempt_has_the_cause_of_its_failure_in_words(
    run: Any, answer: Report | Exception, cause: str
) -> None:
    assert run(answer)[0].cause == cause


def test_cause_of_a_failed_freeze_stays_if_the_snapshot_is_taken_without_one(run: Any) -> None:
    frozen = Report("freeze-failed", freeze_doubt="`/a` failed", blobs=(UNSENT,))
    attempt, _ = run(frozen, Report(why="nothing was frozen"), settings=CRASH_CONSISTENT)
    assert attempt.cause == "`/a` failed"


REFUSED = Blob(
    outcome="refused", snapshot_uri=None, http_status=403, error_code="AuthenticationFailed", message="No."
)
REFUSED_WORDS = f"no known snapshot of `{NAME}`: the service answered 403 AuthenticationFailed: No."


@pytest.mark.parametrize(
    "code", ["not-thawed", "thawed-by-watchdog", "thawed-by-another", "watchdog-lost", "mounted-since"]
)
def test_failed_disk_does_not_hide_what_happened_to_the_freeze(run: Any, code: str) -> None:
    report = Report(code, freeze_doubt="`/data` is still frozen", blobs=(REFUSED, Blob(uri="https://h/b")))
    attempt, _ = run(report, settings=replace(SETTINGS, blobs=(SasUri(URI), SasUri(OTHER))))
    assert attempt.freeze is FreezeResult.BROKEN
    assert attempt.cause == f"`/data` is still frozen; {REFUSED_WORDS}"


@pytest.mark.parametrize("code", ["freeze-hung", "not-freezable", "not-opened"])
def test_failed_disks_are_in_the_log_and_the_cause_although_the_freeze_failed_too(
    run: Any, code: str
) -> None:
    report = Report(
        code, freeze_doubt="`/data` is slow", blobs=(REFUSED, replace(REFUSED, uri="https://h/b"))
    )
    attempt, engine = run(report, settings=replace(SETTINGS, blobs=(SasUri(URI), SasUri(OTHER))))
    assert attempt.freeze.code is not None
    log = engine.log.blob_text().decode()
    assert REFUSED_WORDS in log
    assert "no known snapshot of `https://h/b`" in log
    assert attempt.cause == f"`/data` is slow; {REFUSED_WORDS}"


def test_failed_disk_is_the_cause_if_another_only_answered_late(run: Any) -> None:
    report = Report(
        "answered-late", freeze_doubt="1 answer was late", blobs=(REFUSED, Blob(uri="https://h/b"))
    )
    attempt, _ = run(report, settings=replace(SETTINGS, blobs=(SasUri(URI), SasUri(OTHER))))
    assert attempt.cause == REFUSED_WORDS


def test_job_without_blobs_says_so(run: Any) -> None:
    attempt, engine = run(settings=replace(SETTINGS, blobs=()))
    assert "names no blobs" in attempt.cause
    assert engine.prepared == []


def test_cause_has_no_signature(run: Any) -> None:
    failure = PrepareError(f"could not do {URI}", code="x", kind="system", subject="run")
    assert "AAAA" not in run(failure)[0].cause


def test_host_that_cannot_be_reached_is_555() -> None:
    telemetry = Telemetry()
    attempt = made_by(Engine([error("callee")]), telemetry=telemetry).by_host(PreSnapshot(200))
    assert (attempt.freeze, attempt.host_number) == (FreezeResult.NOT_TRIED, 555)
    assert ("hostStatusCodeDoSnapshot", "555") in telemetry.pairs()


def test_text_of_the_calls_has_no_signature_metadata_or_password() -> None:
    text = repr(
        Calls(
            blobs=(URI,),
            blob_metadata=({"DiskEncryptionSettings": "AAAA"},),
            metadata={"key": "AAAA"},
            proxy="http://user:AAAA@proxy:3128",
        )
    )
    assert "AAAA" not in text


def test_bad_address_of_the_host_is_a_host_that_cannot_be_reached(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    telemetry = Telemetry()
    engine = Engine([])
    making = made_by(engine, telemetry=telemetry, host_address="127.0.0.1:99999")
    attempt = making.by_host(PreSnapshot(555))
    assert (attempt.freeze, attempt.host_number) == (FreezeResult.NOT_TRIED, 555)
    assert engine.prepared == []


def test_variable_that_cannot_be_a_proxy_makes_the_disks_unreachable_and_nothing_is_prepared(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128/proxy.pac")
    attempt, engine = run(Report(None))
    assert attempt.freeze is FreezeResult.NOT_TRIED
    assert engine.prepared == []
