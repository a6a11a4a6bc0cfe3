"""`vmsnapshot quiesce` says what a run would refuse, and freezes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quiesce.conftest import HookDiary
from tests.support.command import run_command


def rehearse(action: str, *hooks: HookDiary, options: str = "") -> tuple[int, dict[str, dict[str, object]]]:
    names = [f"hook:{hook.program}{options}" for hook in hooks]
    finished = run_command("quiesce", action, "--json", *names)
    return finished.status, {item["name"]: item for item in finished.document["applications"]}


def test_check_starts_each_application_and_asks_none_to_hold_still(root_directory: Path) -> None:
    good = HookDiary(root_directory, "good")
    bad = HookDiary(root_directory, "bad", "ready=error no licence")
    last = HookDiary(root_directory, "last")
    status, items = rehearse("check", good, bad, last)
    assert status == 1
    assert [items[name]["is_good"] for name in ("good", "bad", "last")] == [True, False, True]
    assert items["bad"]["error_code"] == "hook-failed"
    assert "no licence" in str(items["bad"]["error"])
    assert items["good"]["ready_ms"] is not None
    assert good.words() == ["started", "ready", "end", "end"]


def test_test_holds_each_application_once_and_shows_how_long(root_directory: Path) -> None:
    hooks = [HookDiary(root_directory, name) for name in ("first", "second")]
    status, items = rehearse("test", *hooks)
    assert status == 0
    for hook in hooks:
        assert hook.words() == ["started", "ready", "quiesce", "quiesced", "released not-asked"]
    assert all(item["lock_wait_ms"] is not None and item["held_ms"] is not None for item in items.values())


@pytest.mark.parametrize("action", ["check", "test"])
def test_optional_application_that_fails_is_named_and_costs_nothing(
    root_directory: Path, action: str
) -> None:
    bad = HookDiary(root_directory, "bad", "ready=exit")
    status, items = rehearse(action, bad, options=",optional")
    assert (status, items["bad"]["is_good"], items["bad"]["error_code"]) == (0, False, "session-lost")


def test_text_names_each_application_and_its_fault(root_directory: Path) -> None:
    bad = HookDiary(root_directory, "bad", "quiesced=error busy")
    finished = run_command("quiesce", "test", f"hook:{bad.program}")
    assert finished.status == 1
    assert "APPLICATION" in finished.output
    assert "bad: hook-failed: the hook" in finished.output
    assert "busy" in finished.output


@pytest.mark.parametrize("arguments", [["check"], ["chek", "hook:/a"], ["check", "oracel"], []])
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    assert run_command("quiesce", *arguments).status == 2
