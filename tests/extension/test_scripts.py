"""The owner's wish not to freeze, in the configuration of the scripts: chapter 8 of the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.extension.conftest import Vm, final

SCRIPTS = Path("/etc/azure/VMSnapshotScriptPluginConfig.json")
USUAL = {
    "pluginName": "ScriptRunner",
    "preScriptLocation": "/root/pre.sh",
    "postScriptLocation": "/root/post.sh",
    "fsFreezeEnabled": False,
}


def log_of_a_job(vm: Vm, content: dict[str, object], *, mode: int = 0o600, owner: int = 0) -> str:
    """Runs a job with this script configuration. Returns what it logged."""
    file = vm.extension.sandbox.path(SCRIPTS)
    file.write_text(json.dumps(content))
    file.chmod(mode)
    try:
        vm.extension.sandbox.run("chown", str(owner), str(SCRIPTS))
        before = vm.extension.log()
        job = vm.job(vm.new_number(), mode="onlyGuest")
        assert final(job.run()) == ("success", "1", 1)
        assert len(vm.service.requests("PUT snapshot")) == 2
        return vm.extension.log()[len(before) :]
    finally:
        file.unlink()


@pytest.mark.parametrize("content", [USUAL, {"fsFreezeEnabled": False}], ids=["complete", "only the wish"])
def test_nothing_is_frozen_if_the_owner_does_not_want_it(vm: Vm, content: dict[str, object]) -> None:
    log = log_of_a_job(vm, content)
    assert "freeze called" not in log
    assert f"nothing is frozen, because `{SCRIPTS}` sets fsFreezeEnabled to false" in log


@pytest.mark.parametrize(
    "content", [{**USUAL, "fsFreezeEnabled": True}, {"preScriptLocation": "/root/pre.sh"}]
)
def test_everything_is_frozen_without_that_wish(vm: Vm, content: dict[str, object]) -> None:
    assert log_of_a_job(vm, content).count("freeze called") == 2


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o644, 0, "its permissions are 644"),
        (0o700, 0, "permissions are 700"),
        (0o600, 7, "belongs to user 7"),
    ],
)
def test_configuration_that_others_could_have_written_is_ignored_with_a_warning(
    vm: Vm, mode: int, owner: int, words: str
) -> None:
    log = log_of_a_job(vm, USUAL, mode=mode, owner=owner)
    assert log.count("freeze called") == 2
    assert f"Warning: `{SCRIPTS}` is ignored: " in log
    assert words in log
