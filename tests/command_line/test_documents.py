"""The JSON documents have every documented key, with a value of the documented type, and no other key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartFaultServer
from tests.support.command import SnapshotRun, run_command, take_snapshot
from tests.support.fault_server import Creates, Refuses
from tests.support.filesystems import REPOSITORY, ScratchFilesystem

# The section "The report" of the documentation: every key and the types that its value may have.
NUMBER = (int, float)
TEXT_OR_NULL = (str, type(None))
NUMBER_OR_NULL = (int, float, type(None))
REPORT_KEYS: dict[str, Any] = {
    "schema_version": int,
    "run_id": str,
    "started_at": str,
    "consistent": bool,
    "consistency": str,
    "why": TEXT_OR_NULL,
    "freeze_doubt": TEXT_OR_NULL,
    "freeze_doubt_code": TEXT_OR_NULL,
    "all_thawed": bool,
    "window_ms": NUMBER_OR_NULL,
    "thaw_timeout_ms": NUMBER,
    "mode": dict,
    "filesystems": list,
    "unreadable_mounts": list,
    "blobs": list,
    "applications": list,
    "command": (dict, type(None)),
    "host_call": (dict, type(None)),
    "watchdog": dict,
    "timeline": list,
}
PART_KEYS: dict[str, dict[str, Any]] = {
    "mode": {"rcu_expedited": bool, "rcu_why_not": TEXT_OR_NULL, "parallel": bool},
    "filesystems": {
        "mount_point": str,
        "device": str,
        "filesystem_type": str,
        "level": int,
        "outcome": str,
        "frozen_at": TEXT_OR_NULL,
        "freeze_ms": NUMBER_OR_NULL,
        "thawed_at": TEXT_OR_NULL,
        "frozen_ms": NUMBER_OR_NULL,
        "thawed_by": TEXT_OR_NULL,
        "error": TEXT_OR_NULL,
    },
    "blobs": {
        "uri": str,
        "outcome": str,
        "snapshot": TEXT_OR_NULL,
        "snapshot_uri": TEXT_OR_NULL,
        "http_status": (int, type(None)),
        "error_code": TEXT_OR_NULL,
        "message": TEXT_OR_NULL,
        "retryable": bool,
        "attempts": int,
        "answer_ms": NUMBER_OR_NULL,
        "answered_late": bool,
    },
    "watchdog": {
        "pid": int,
        "fired": TEXT_OR_NULL,
        "released": bool,
        "own_control_group": bool,
        "peak_memory_kib": (int, type(None)),
    },
    "timeline": {"at_ms": NUMBER, "event": str, "subject": TEXT_OR_NULL, "detail": TEXT_OR_NULL},
}


def assert_keys(value: dict[str, Any], keys: dict[str, Any]) -> None:
    assert set(value) == set(keys)
    for key, types in keys.items():
        assert isinstance(value[key], types), key


def section(heading: str) -> str:
    """Returns the text below a heading of the documentation, to the next heading of the same level."""
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        found = re.search(rf"^(#+) {heading}\n(.*?)(?=^\1 |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
        if found:
            return found[2]
    raise AssertionError(f"no page of the documentation has the heading {heading!r}")


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_report_has_every_documented_key_and_no_other(
    disk: ScratchFilesystem, fault_server: StartFaultServer, tmp_path: Path, is_refused: bool
) -> None:
    server = fault_server()
    server.script("disk", Refuses(404, "BlobNotFound") if is_refused else Creates())
    path = tmp_path / "report"
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], f"--report={path}")
    assert finished.status == int(is_refused)
    assert path.read_text() == finished.output
    report = finished.document
    assert_keys(report, REPORT_KEYS)
    for name, keys in PART_KEYS.items():
        parts = report[name] if isinstance(report[name], list) else [report[name]]
        assert parts
        for part in parts:
            assert_keys(part, keys)
    documented = set(re.findall(r"`(\w+)`", section("The report")))
    assert {*REPORT_KEYS, *(key for keys in PART_KEYS.values() for key in keys)} <= documented


def test_the_status_of_a_run_at_work_has_every_documented_key(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server(default=Creates(after_ms=800))
    with SnapshotRun([disk.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        told = run_command("status", "--json")
        assert run.finish().status == 0
    assert told.status == 3
    status = told.document
    assert_keys(status, {"frozen": list, "runs": list, "unreadable": list, "rcu_expedited": dict})
    keys = ("mount_point", "device", "run_id", "since", "state")
    assert_keys(status["frozen"][0], dict.fromkeys(keys, str))
    (at_work,) = status["runs"]
    assert_keys(
        at_work,
        {
            "run_id": str,
            "state": str,
            "started_at": str,
            "thaws_by": str,
            "pid": int,
            "alive": bool,
            "watchdog_pid": int,
            "watchdog_alive": bool,
            "fired": TEXT_OR_NULL,
            "finished": bool,
            "filesystems": list,
        },
    )
    assert at_work["state"] == "at-work"
    assert at_work["started_at"] < at_work["thaws_by"]
    assert (at_work["alive"], at_work["watchdog_alive"], at_work["finished"]) == (True, True, False)
    assert_keys(status["rcu_expedited"], {"value": (int, type(None)), "held_by": TEXT_OR_NULL})
    assert run_command("status", "--json").document["frozen"] == []
