"""Properties of a whole job: whatever is in its settings file, it ends in a final status for the agent.

The job runs in this process, but its attempts, which would freeze, are replaced by some that do nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.handler.handler_environment import run_job
from tests.handler.settings.test_settings_properties import ANYTHING, PROTECTED, PUBLIC, USABLE
from tests.support.protected_settings import settings_file_text
from vmsnapshot.handler import worker
from vmsnapshot.handler.network import host
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.host import PreSnapshot
from vmsnapshot.handler.report.outcome import Attempt, FreezeResult
from vmsnapshot.handler.report.outcome import Path as Taker

WORDS = ("transitioning", "success", "warning", "error")


class NoAttempts:
    """Replaces the attempts. Nothing is tried, so nothing is frozen."""

    def __init__(self, *_: object) -> None:
        pass

    def by_guest(self, *_: object, **__: object) -> Attempt:
        return Attempt(Taker.GUEST, FreezeResult.NOT_TRIED)

    def by_host(self, *_: object) -> Attempt:
        return Attempt(Taker.HOST, FreezeResult.NOT_TRIED)


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    """Runs one loop for the calls and uploads of all examples."""
    with Background() as running:
        running.warm_up().result()
        yield running


@pytest.fixture(autouse=True)
def nothing_is_frozen_or_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes sure that no example freezes or calls the host."""

    async def no_answer(*_: object, **__: object) -> PreSnapshot:
        return PreSnapshot(host.NO_ANSWER)

    monkeypatch.setattr(worker, "Attempts", NoAttempts)
    monkeypatch.setattr(host, "pre_snapshot", no_answer)


FILES = (
    st.binary()
    | ANYTHING.map(json.dumps).map(str.encode)
    | st.tuples(PUBLIC | USABLE, PROTECTED | st.none()).map(
        lambda both: settings_file_text(both[0], both[1]).encode()
    )
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=FILES)
def test_any_settings_file_ends_in_a_final_status(content: bytes, background: Background) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "lib/Publisher.VMSnapshotLinux-1.0"
        assert_final(run_job(base, content, background))


def assert_final(document: Any) -> None:
    """Checks that the agent accepts the status, and that it is a final one."""
    [entry] = document
    status = entry["status"]
    assert status["status"] in WORDS
    assert set(status["formattedMessage"]) == {"lang", "message"}
    [substatus] = status["substatus"]
    assert substatus["status"] in WORDS
    assert isinstance(substatus["name"], str)
    report = json.loads(substatus["name"])[0]["status"]
    for part in (status, report):
        assert int(part["code"]) in (1, 2, 11, 16, 17, 76, 402)
