"""A session: it runs once, and leaves nothing behind when it does not run."""

from __future__ import annotations

import sys

import pytest

import vmsnapshot
from tests.engine.api import assert_frozen
from tests.support.processes import run_bounded


@pytest.mark.usefixtures("root")
def test_a_session_runs_once_and_not_after_it_was_closed(plan: vmsnapshot.Plan) -> None:
    session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
    report = session.run()
    # There was nothing to freeze, so nothing is consistent, and nothing is wrong.
    assert (report.filesystems, report.consistent, report.all_thawed) == ([], False, True)
    assert report.why is not None
    assert (report.freeze_doubt_code, report.freeze_doubt) == ("nothing-frozen", report.why)
    assert report.host_call is None
    for value in (session, report, report.mode, report.watchdog, report.timeline[0]):
        assert_frozen(value)
    with pytest.raises(RuntimeError):
        session.run()
    session.close()
    with vmsnapshot.prepare(plan, thaw_timeout=1.0) as other:
        pass
    assert other.run_id != session.run_id
    with pytest.raises(RuntimeError):
        other.run()


@pytest.mark.usefixtures("root")
def test_what_progress_raises_ends_the_preparation(plan: vmsnapshot.Plan) -> None:
    def stop(sentence: str) -> None:
        raise ValueError(sentence)

    with pytest.raises(ValueError, match="opening the filesystems"):
        vmsnapshot.prepare(plan, progress=stop)
    # Everything was given back: the next one finds no other run.
    vmsnapshot.prepare(plan).close()


@pytest.mark.usefixtures("root")
def test_a_forked_child_that_closes_its_copy_of_a_session_leaves_the_run_alone() -> None:
    program = """
import os, vmsnapshot
plan = vmsnapshot.plan(include=[], exclude=["/**"])
session = vmsnapshot.prepare(plan, thaw_timeout=1.0)
child = os.fork()
if child == 0:
    session.close()
    try:
        session.run()
    except RuntimeError:
        del session
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.run_id in [run["run_id"] for run in vmsnapshot.status()["runs"]]
try:
    vmsnapshot.prepare(plan)
except vmsnapshot.PrepareError as error:
    assert error.code == "another-run", error.code
else:
    raise AssertionError("a second run was prepared beside the first")
assert session.run().all_thawed
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)


@pytest.mark.usefixtures("root")
def test_a_process_that_ignores_sigchld_can_start_a_watchdog() -> None:
    program = """
import signal, vmsnapshot
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
plan = vmsnapshot.plan(include=[], exclude=["/**"])
assert vmsnapshot.prepare(plan, thaw_timeout=1.0).run().watchdog.released
"""
    run_bounded([sys.executable, "-c", program], limit_seconds=30.0)
