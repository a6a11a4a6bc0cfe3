"""How a run is planned, when it waits for another run or thaws first, and when it holds signals.

The engine is a double here. ``tests/extension`` uses the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable

import pytest

import vmsnapshot
from tests.handler.machine.fake_machine import IDE_OS, IDE_TEMPORARY, FakeMachine, mounted
from tests.support.fake_native import Report, UnreadableMounts
from vmsnapshot import Mount, PrepareError
from vmsnapshot.handler.freeze import freezing
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.lock import LockHeldError, LockUnavailableError
from vmsnapshot.handler.log import EXTENSION_LOG, Log
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration
from vmsnapshot.interruptions import Interruptions

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorKind


@dataclass
class Planner:
    """A machine that records how it was planned."""

    mounts: Sequence[Mount]
    block_devices: Sequence[object]
    calls: list[dict[str, Any]] = field(default_factory=list)

    def plan(self, **selection: Any) -> Planner:
        self.calls.append(selection)
        return self

    filesystems: Sequence[object] = ()
    unreadable_mounts: Sequence[UnreadableMounts] = (UnreadableMounts(),)
    unusable_excludes: Sequence[tuple[str, str]] = (("a=b", "could not understand pattern `a=b`"),)


def made(directory: Path | None = None) -> Freezing:
    configuration = VmBackupConfiguration(mounts_to_skip=("/skipped", "a=b"))
    return Freezing(configuration, Interruptions(), Log(directory, "test"))


# A prepared run.
SESSION = SimpleNamespace(warnings=["connected directly"])


def error(kind: ErrorKind) -> PrepareError:
    return PrepareError("could not do it", code="a-code", kind=kind, subject="run")


def test_one_plan_leaves_out_temporary_disks_and_what_else_is_named_and_logs_what_has_no_meaning(
    tmp_path: Path,
) -> None:
    tables = FakeMachine(tmp_path)
    tables.scsi_disk("sda", "8:0", IDE_OS, 0)
    tables.scsi_disk("sdb", "8:16", IDE_TEMPORARY, 0)
    tables.other_disk("sdc", "8:32")
    root, temporary, stick = mounted("8:0", "/"), mounted("8:16", "/mnt"), mounted("8:32", "/stick")
    machine: Any = Planner([root, temporary, stick], tables.read().block_devices)
    made(tmp_path).plan(machine, [stick])
    [selection] = machine.calls
    assert selection == {
        "exclude": ("/skipped", "a=b"),
        "exclude_mounts": [temporary, stick],
        "unusable_excludes": "report",
    }
    log = (tmp_path / EXTENSION_LOG).read_text()
    assert "MountsToSkip: could not understand pattern `a=b`; the pattern is ignored" in log
    assert "some mounts are not known: /proc/20/mountinfo: permission denied" in log


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepares with an engine that gives these answers. Returns the last answer and the number of thaws."""

    def run(*answers: object) -> tuple[object, int]:
        remaining = list(answers)
        thaws: list[Log] = []

        def answer(*_: object, **__: object) -> object:
            given = remaining.pop(0)
            if isinstance(given, PrepareError):
                raise given
            return given

        monkeypatch.setattr(vmsnapshot, "prepare", answer)
        monkeypatch.setattr(freezing, "_RETRY_SECONDS", 0.0)
        monkeypatch.setattr(freezing, "thaw_leftovers", thaws.append)
        plan: Any = None
        return made().prepare(plan), len(thaws)

    return run


def test_another_run_is_waited_for(prepare: Any) -> None:
    assert prepare(error("another-run"), error("another-run"), SESSION) == (SESSION, 0)


def test_another_run_is_not_waited_for_longer_than_the_limit(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "ANOTHER_RUN_LIMIT_SECONDS", 0.0)
    with pytest.raises(PrepareError):
        prepare(error("another-run"))


@pytest.fixture
def interrupted() -> Freezing:
    """A run with a signal whose exception Python has swallowed: it is noted, and interrupted nothing."""
    run = made()
    run.interruptions.noted.append("SIGTERM")
    return run


def test_noted_signal_ends_the_wait_for_another_run(
    interrupted: Freezing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error("another-run")

    monkeypatch.setattr(vmsnapshot, "prepare", refuse)
    monkeypatch.setattr(freezing, "ANOTHER_RUN_LIMIT_SECONDS", 0.3)
    plan: Any = None
    with pytest.raises(KeyboardInterrupt):
        interrupted.prepare(plan)


def test_noted_signal_ends_the_wait_for_the_lock(
    interrupted: Freezing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*, give_up: Callable[[], bool]) -> None:
        assert give_up()
        raise LockHeldError("could not lock", code="lock-held", kind="another-run")

    monkeypatch.setattr(freezing, "SafeFreezeLock", wait)
    with pytest.raises(KeyboardInterrupt):
        interrupted.lock()


def test_lock_that_another_program_holds_is_an_error_if_there_was_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wait(*, give_up: Callable[[], bool]) -> None:
        assert not give_up()
        raise LockHeldError("could not lock", code="lock-held", kind="another-run")

    monkeypatch.setattr(freezing, "SafeFreezeLock", wait)
    with pytest.raises(LockHeldError):
        made().lock()


@pytest.mark.parametrize("is_missing", [True, False])
def test_lock_that_cannot_be_taken_is_an_error_unless_most_likely_no_other_program_holds_it(
    monkeypatch: pytest.MonkeyPatch, is_missing: bool
) -> None:
    def refuse(**_: object) -> None:
        raise LockUnavailableError("could not lock `/x`: no space left on device", is_missing=is_missing)

    monkeypatch.setattr(freezing, "SafeFreezeLock", refuse)
    parts = made()
    if is_missing:
        with parts.lock():
            (warning,) = parts.log.warnings_and_errors()
        assert warning.text == (
            "could not lock `/x`: no space left on device; freezing without it: most likely no other program "
            "holds it"
        )
    else:
        with pytest.raises(LockUnavailableError):
            parts.lock()


def test_what_an_earlier_run_left_frozen_is_thawed_once(prepare: Any) -> None:
    assert prepare(error("left-frozen"), SESSION) == (SESSION, 1)
    with pytest.raises(PrepareError):
        prepare(error("left-frozen"), error("left-frozen"))


@pytest.mark.parametrize("kind", ["arguments", "system", "network", "interrupted"])
def test_every_other_error_is_raised_at_once(prepare: Any, kind: ErrorKind) -> None:
    with pytest.raises(PrepareError):
        prepare(error(kind))


def test_only_the_last_phase_holds_signals_and_it_is_freeze(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    run = made()
    phases: Any = vmsnapshot._native.names()["Phase"]
    assert phases[-1] == "freeze"
    for phase in phases:
        assert not run.interruptions._is_holding
        run._on_phase(phase)
    assert run.interruptions._is_holding


def test_proxy_that_was_left_out_by_the_run_is_warned_of_in_the_log() -> None:
    warnings = ["known since the preparation"]

    def run() -> Report:
        warnings.append("connected directly")
        return Report(blobs=[])

    freezing_once = made()
    session: Any = SimpleNamespace(warnings=warnings, run=run)
    freezing_once.run(session)
    assert [line.text for line in freezing_once.log.warnings_and_errors()] == ["connected directly"]


def test_every_event_of_a_run_has_words_in_the_log(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
) -> None:
    assert set(freezing._EVENT_WORDS) == set(vmsnapshot._native.names()["TimelineEventKind"])
