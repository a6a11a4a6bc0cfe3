"""The scripts of the owner before the freeze and after the thaw: chapter 8 of the contract, table 8.5."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.extension.conftest import Vm, final, message, telemetry, worker_of
from tests.support.host_service import blob_error

SCRIPTS = Path("/etc/azure/VMSnapshotScriptPluginConfig.json")
PRE = Path("/etc/azure/pre.sh")
POST = Path("/etc/azure/post.sh")
DIARY = Path("/etc/azure/diary")
USUAL = {
    "pluginName": "ScriptRunner",
    "preScriptLocation": str(PRE),
    "postScriptLocation": str(POST),
    "preScriptParams": ["", "a b"],
    "postScriptParams": [],
    "preScriptNoOfRetries": 0,
    "postScriptNoOfRetries": 0,
    "timeoutInSeconds": 5,
    "continueBackupOnFailure": True,
    "fsFreezeEnabled": True,
}
SUCCESS = ("success", "0", 0)


def note(word: str, more: str = "") -> str:
    """Returns a script that writes a word, its arguments and its environment to the diary."""
    return (
        f'echo "{word} $# [$2] $VMSNAPSHOT_PHASE $VMSNAPSHOT_OUTCOME $VMSNAPSHOT_TASK '
        f'$VMSNAPSHOT_SECONDS $(pwd)" >> {DIARY}\n{more}\n'
    )


class Scripts:
    """What a VM has in ``/etc/azure``."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.write(PRE, note("pre"))
        self.write(POST, note("post"))
        self.configure()

    def path(self, inside: Path) -> Path:
        """Returns where a file is outside of the sandbox."""
        return self._vm.extension.sandbox.path(inside)

    def write(self, inside: Path, content: str, mode: int = 0o600) -> None:
        """Writes a file of root."""
        self.path(inside).write_text(content)
        self.path(inside).chmod(mode)

    def configure(self, **changes: object) -> None:
        """Writes the configuration with these values in place of the usual ones."""
        self.write(SCRIPTS, json.dumps({**USUAL, **changes}))

    def diary(self) -> list[str]:
        """Returns what the scripts have written."""
        path = self.path(DIARY)
        return path.read_text().splitlines() if path.exists() else []

    def words(self) -> list[str]:
        """Returns the first word of each line."""
        return [line.split()[0] for line in self.diary()]


@pytest.fixture
def scripts(vm: Vm) -> Iterator[Scripts]:
    """Both scripts and their configuration, which are removed afterwards."""
    yield Scripts(vm)
    for inside in (SCRIPTS, PRE, POST, DIARY):
        vm.extension.sandbox.path(inside).unlink(missing_ok=True)


def run_job(vm: Vm, **changes: Any) -> tuple[dict[str, Any], str, int]:
    """Runs a job. Returns its report, what it logged, and how many snapshots it took."""
    before = vm.extension.log()
    vm.service.forget_requests()
    job = vm.job(vm.new_number(), mode="onlyGuest", **changes)
    report = job.run()
    return report, vm.extension.log()[len(before) :], len(vm.service.requests("PUT snapshot"))


def test_job_is_application_consistent_if_both_scripts_succeed(vm: Vm, scripts: Scripts) -> None:
    report, log, snapshots = run_job(vm)
    assert final(report) == SUCCESS
    assert message(report).startswith("Enable Succeeded with App Consistent Snapshot")
    assert (snapshots, len(report["snapshotInfo"])) == (2, 2)
    assert telemetry(report)["isPrePostEnabled"] == "true"
    assert telemetry(report)["extErrorCode"] == "success_appconsistent"
    pre, post = scripts.diary()
    task = report["taskId"]
    directory = vm.extension.base_directory
    assert pre == f"pre 2 [a b] pre  {task} 5 {directory}"
    assert post == f"post 0 [] post asked {task} 5 {directory}"
    assert log.count("freeze called") == 2
    assert "application `ScriptRunner`: held" in log


@pytest.mark.usefixtures("scripts")
def test_scripts_cost_little_more_than_they_take(vm: Vm) -> None:
    _, log, _ = run_job(vm)
    (line,) = [line for line in log.splitlines() if "application `ScriptRunner`" in line]
    waited_ms = float(line.partition("waited ")[2].partition(" ms")[0])
    # The contract's reference polls every 3 s.
    assert waited_ms < 500


def test_without_a_freeze_the_scripts_run_all_the_same(vm: Vm, scripts: Scripts) -> None:
    scripts.configure(fsFreezeEnabled=False)
    report, log, snapshots = run_job(vm)
    assert final(report) == SUCCESS
    assert (snapshots, scripts.words()) == (2, ["pre", "post"])
    assert "freeze called" not in log
    assert f"nothing is frozen, because `{SCRIPTS}` sets fsFreezeEnabled to false" in log


HANGS = "trap '' TERM; sleep 60 & wait"
FLOODS = "yes | head -c 20000000; exit 3"
BACKGROUND = "sleep 3 & exit 3"


@pytest.mark.parametrize(
    ("script", "timeout", "code", "continues", "freezes"),
    [
        ("exit 1", 5, 300, True, True),
        ("exit 1", 5, 300, False, True),
        ("exit 1", 5, 300, True, False),
        ("exit 2", 5, 300, False, True),
        (FLOODS, 5, 300, True, True),
        (BACKGROUND, 5, 300, True, True),
        (HANGS, 1, 308, True, True),
        (HANGS, 1, 308, False, True),
    ],
    ids=["C F", "F", "C", "exit 2", "floods", "background", "hangs, C F", "hangs, F"],
)
def test_failed_pre_script_ends_the_job_only_if_the_owner_says_so(
    vm: Vm, scripts: Scripts, script: str, timeout: int, code: int, continues: bool, freezes: bool
) -> None:
    scripts.write(PRE, note("pre", script))
    scripts.configure(continueBackupOnFailure=continues, fsFreezeEnabled=freezes, timeoutInSeconds=timeout)
    began = time.monotonic()
    report, log, snapshots = run_job(vm)
    assert time.monotonic() - began < 12
    # Exactly once, whatever became of the first.
    assert scripts.words() == ["pre", "post"]
    name = "FailedPrepostPreScriptFailed" if code == 300 else "FailedPrepostPreScriptTimeout"
    if continues and freezes:
        assert final(report) == ("success", "1", code)
        assert (snapshots, log.count("freeze called")) == (2, 2)
        assert message(report).startswith("snapshotCreator=")
    else:
        assert final(report) == ("error", str(code), code)
        assert (snapshots, log.count("freeze called")) == (0, 0)
        assert message(report).startswith(f"PreScript failed for the plugin ScriptRunner StatusCode.{name},")
    assert telemetry(report)["extErrorCode"] == name


@pytest.mark.parametrize(
    ("script", "timeout", "code"), [("exit 1", 5, 301), (HANGS, 1, 309)], ids=["exit 1", "hangs"]
)
@pytest.mark.parametrize("continues", [True, False])
def test_failed_post_script_leaves_the_snapshots(
    vm: Vm, scripts: Scripts, script: str, timeout: int, code: int, continues: bool
) -> None:
    scripts.write(POST, note("post", script))
    scripts.configure(continueBackupOnFailure=continues, timeoutInSeconds=timeout)
    report, _, snapshots = run_job(vm)
    assert (snapshots, len(report["snapshotInfo"])) == (2, 2)
    if continues:
        assert final(report) == ("success", "1", code)
    else:
        assert final(report) == ("error", str(code), code)
        assert message(report).startswith("PostScript failed for the plugin ScriptRunner StatusCode.")


def test_failed_script_is_run_again_as_often_as_the_owner_says(vm: Vm, scripts: Scripts) -> None:
    scripts.write(PRE, note("pre", f'[ "$(grep -c pre {DIARY})" -ge 3 ]'))
    scripts.configure(preScriptNoOfRetries=1)
    assert final(run_job(vm)[0]) == ("success", "1", 300)
    scripts.path(DIARY).unlink()
    scripts.configure(preScriptNoOfRetries=2)
    assert final(run_job(vm)[0]) == SUCCESS
    assert scripts.words() == ["pre", "pre", "pre", "post"]


@pytest.mark.parametrize(
    ("which", "change", "code"),
    [
        (PRE, lambda path: path.unlink(), 302),
        (POST, lambda path: path.unlink(), 303),
        (PRE, lambda path: path.chmod(0o620), 306),
        (PRE, lambda path: os.chown(path, 7, 0), 306),
        (POST, lambda path: path.chmod(0o604), 307),
        (POST, lambda path: os.chown(path, 7, 0), 307),
    ],
    ids=["no pre", "no post", "group may write pre", "owner of pre", "others may read post", "owner of post"],
)
@pytest.mark.parametrize("continues", [True, False])
def test_script_that_cannot_be_run_is_named(
    vm: Vm, scripts: Scripts, which: Path, change: Any, code: int, continues: bool
) -> None:
    scripts.configure(continueBackupOnFailure=continues)
    change(scripts.path(which))
    report, _, snapshots = run_job(vm)
    assert scripts.words() == []
    assert telemetry(report)["isPrePostEnabled"] == "true"
    if continues:
        assert final(report) == ("success", "1", code)
        assert snapshots == 2
    else:
        assert final(report) == ("error", str(code), code)
        assert snapshots == 0
        assert message(report).startswith("Plugin Host Precheck Failed StatusCode.FailedPrepost")


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o644, 0, "its permissions are 644"),
        (0o700, 0, "permissions are 700"),
        (0o600, 7, "belongs to user 7"),
    ],
)
def test_configuration_that_others_could_have_written_is_not_read(
    vm: Vm, scripts: Scripts, mode: int, owner: int, words: str
) -> None:
    scripts.configure(continueBackupOnFailure=False, fsFreezeEnabled=False)
    scripts.path(SCRIPTS).chmod(mode)
    vm.extension.sandbox.run("chown", str(owner), str(SCRIPTS))
    report, log, snapshots = run_job(vm)
    assert final(report) == ("success", "1", 317)
    assert (snapshots, log.count("freeze called"), scripts.words()) == (2, 2, [])
    assert f"Warning: `{SCRIPTS}` is ignored: " in log
    assert words in log


@pytest.mark.parametrize("content", ["{", "[]", '{"preScriptLocation": "/etc/azure/pre.sh"}', "{}"])
def test_configuration_without_scripts_costs_nothing_but_a_warning(
    vm: Vm, scripts: Scripts, content: str
) -> None:
    scripts.write(SCRIPTS, content)
    report, log, snapshots = run_job(vm)
    assert final(report) == ("success", "1", 1)
    assert (snapshots, log.count("freeze called"), scripts.words()) == (2, 2, [])
    assert f"`{SCRIPTS}`" in log
    assert "isPrePostEnabled" not in telemetry(report)


def test_refused_snapshot_outranks_the_scripts(vm: Vm, scripts: Scripts) -> None:
    scripts.write(PRE, note("pre", "exit 1"))
    job = vm.job(vm.new_number(), mode="onlyGuest")
    vm.service.script(job.disks[0], blob_error(403, "AuthorizationFailure"), operation="PUT snapshot")
    assert final(job.run()) == ("error", "76", 761)
    assert scripts.words() == ["pre", "post"]


def test_post_script_runs_once_if_the_worker_is_killed_between_the_two(vm: Vm, scripts: Scripts) -> None:
    scripts.write(PRE, note("pre", "sleep 1"))
    job = vm.job(vm.new_number(), mode="onlyGuest")
    job.enable()
    worker = worker_of(vm)
    until = time.monotonic() + 10
    while scripts.words() != ["pre"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    while scripts.words() != ["pre", "post"]:
        assert time.monotonic() < until, scripts.words()
        time.sleep(0.01)
    assert "post 0 [] post run-lost" in scripts.diary()[-1]
    with contextlib.suppress(AssertionError):
        vm.extension.finish()
    time.sleep(0.5)
    assert scripts.words() == ["pre", "post"]
