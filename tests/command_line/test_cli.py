"""The command line: exit statuses, options, and what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable
from urllib.parse import quote

import pytest

from tests.command_line.conftest import Command
from tests.support.fake_native import (
    FAILED_REPORT,
    NOTHING_FROZEN,
    NOTHING_THAWED,
    ONE_FROZEN,
    SIGNATURE,
    STUCK_REPORT,
    FakeNative,
    FilesystemOutcome,
    Plan,
    PlannedFilesystem,
    SkippedFilesystem,
    sas_uri,
)
from vmsnapshot.cli import progress, streams
from vmsnapshot.errors import PlanError, PrepareError, ThawError
from vmsnapshot.quiesce import Hook

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorKind


def refusal(message: str, *, code: str, kind: ErrorKind, hint: str | None = None) -> PrepareError:
    return PrepareError(message, code=code, kind=kind, subject="run", hint=hint)


@pytest.fixture
def blob_list(tmp_path: Path) -> str:
    path = tmp_path / "disks"
    path.write_text(f"# disks\n\n{sas_uri(0)}\n{sas_uri(1)}\n")
    return str(path)


# plan


def test_plan_exits_0_and_shows_order_and_skips(command: Command, native: FakeNative) -> None:
    native.plan_result = Plan(
        filesystems=[
            PlannedFilesystem(mount_point="/upper", level=0),
            PlannedFilesystem(mount_point="/lower", level=1),
        ],
        skipped=[
            SkippedFilesystem(),
            SkippedFilesystem("/proc", "0:4", "proc", "proc", "not-on-local-block-device", "no device"),
        ],
    )
    assert command("plan", "--include", "/upper", "--include", "ext4", "--exclude", "xfs") == 0
    assert native.plan_arguments == {"include": ["/upper", "ext4"], "exclude": ["xfs"]}
    assert command.out.index("/upper") < command.out.index("/lower")
    assert "vfat cannot be frozen" in command.out
    assert "1 memory and pseudo filesystems (proc)" in command.out
    assert "no device" not in command.out


def test_plan_lists_pseudo_filesystems_when_asked_for_all(command: Command, native: FakeNative) -> None:
    native.plan_result = Plan(
        skipped=[SkippedFilesystem("/proc", "0:4", "proc", "proc", "not-on-local-block-device", "no device")]
    )
    assert command("plan", "--all") == 0
    assert "no device" in command.out


def test_plan_prints_the_document_of_the_engine_as_json(command: Command, native: FakeNative) -> None:
    assert command("plan", "--json") == 0
    assert json.loads(command.out) == json.loads(native.plan_result.to_json())


def test_plan_warns_of_an_exclude_pattern_that_matches_nothing(command: Command, native: FakeNative) -> None:
    native.plan_result = Plan(unmatched_excludes=["/nowhere"])
    assert command("plan") == 0
    assert "`/nowhere`" in command.err


def test_plan_exits_2_on_a_bad_pattern(command: Command, native: FakeNative) -> None:
    native.plan_error = PlanError(
        "no mount matches `/x`",
        code="pattern-matches-nothing",
        kind="arguments",
        hint="see `vmsnapshot plan`",
    )
    assert command("plan", "--include", "/x") == 2
    assert command.out == ""
    assert command.err == "vmsnapshot: error: no mount matches `/x`\nhint: see `vmsnapshot plan`\n"


def test_plan_exits_1_when_the_system_cannot_be_read(command: Command, native: FakeNative) -> None:
    native.plan_error = PlanError("could not read mountinfo", code="unreadable", kind="system")
    assert command("plan") == 1


def test_plan_escapes_bytes_of_a_mount_point_that_are_not_text(command: Command, native: FakeNative) -> None:
    native.plan_result = Plan(filesystems=[PlannedFilesystem(mount_point="/d\udcff\x1b[31m\n")])
    assert command("plan") == 0
    assert "/d\\xff\\x1b[31m\\x0a" in command.out


# snapshot: exit status and document


def test_snapshot_exits_0_when_consistent(command: Command, native: FakeNative, blob_list: str) -> None:
    assert command("snapshot", "--blobs-from", blob_list) == 0
    assert native.prepare_blobs == [sas_uri(0), sas_uri(1)]
    assert native.calls == ["plan", "prepare", "run", "close"]
    assert command.out.splitlines()[0] == (
        "the filesystem is thawed; the snapshot is complete and consistent (filesystem)"
    )
    assert command.err == ""


def test_snapshot_exits_1_when_a_blob_is_refused(
    command: Command, native: FakeNative, blob_list: str
) -> None:
    native.report = FAILED_REPORT
    assert command("snapshot", "--blobs-from", blob_list) == 1
    # In the order of the house style: thawed, usable, why not, what next.
    thawed, usable, why, next_step = command.out.splitlines()[0].split("; ")
    assert (thawed, why) == ("the filesystem is thawed", "1 snapshot was refused")
    assert "0 of 1" in usable
    assert "refused" in next_step
    assert "SnapshotCountExceeded" in command.out


def test_snapshot_exits_3_when_not_thawed(command: Command, native: FakeNative, blob_list: str) -> None:
    native.report = STUCK_REPORT
    assert command("snapshot", "--blobs-from", blob_list) == 3
    assert command.out.startswith("NOT THAWED: `/data`; there is no usable snapshot")
    assert "run `vmsnapshot thaw`" in command.out.splitlines()[0]


def test_snapshot_exits_3_when_not_thawed_even_if_the_report_says_consistent(
    command: Command, native: FakeNative, blob_list: str
) -> None:
    native.report = replace(native.report, all_thawed=False)
    assert command("snapshot", "--blobs-from", blob_list) == 3


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("arguments", 2),
        ("system", 1),
        ("network", 1),
        ("another-run", 1),
        ("left-frozen", 3),
        ("interrupted", 130),
    ],
)
def test_kind_of_an_error_decides_the_exit_status(
    command: Command, native: FakeNative, blob_list: str, kind: ErrorKind, status: int
) -> None:
    native.prepare_error = refusal("could not prepare", code="a-code-of-a-later-version", kind=kind)
    assert command("snapshot", "--blobs-from", blob_list) == status
    assert "run" not in native.calls


def test_snapshot_exits_3_when_an_earlier_run_left_something_frozen(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    native.prepare_error = refusal(
        "an earlier run left `/data` frozen", code="left-frozen", kind="left-frozen"
    )
    report = tmp_path / "report"
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(report)) == 3
    # The file may lie on a frozen filesystem.
    assert not report.exists()


def test_snapshot_exits_3_when_the_run_ends_without_a_report(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    def fall_over() -> None:
        raise MemoryError(sas_uri())

    native.on_run = fall_over
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(tmp_path / "report"), "--json") == 3
    assert json.loads(command.out)["error"]["code"] == "run-lost"
    assert "vmsnapshot status" in command.err
    assert SIGNATURE not in command.out + command.err


def test_snapshot_exits_1_when_the_run_fails_before_its_window(
    command: Command, native: FakeNative, blob_list: str
) -> None:
    def refuse() -> None:
        raise refusal("the connection to blob 1 was lost", code="connect-failed", kind="network")

    native.on_run = refuse
    assert command("snapshot", "--blobs-from", blob_list) == 1


def test_json_and_report_file_hold_the_same_document(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text("an older report")
    path.chmod(0o644)
    assert command("snapshot", "--blobs-from", blob_list, "--json", "--report", str(path)) == 0
    assert command.out == path.read_text()
    assert json.loads(command.out) == json.loads(native.report.to_json())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if "vmsnapshot" in entry.name] == []


def test_error_as_json_goes_to_standard_output_and_to_the_report_file(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    native.prepare_error = refusal("blob 1 is gone", code="blob-gone", kind="arguments", hint="look again")
    assert command("snapshot", "--blobs-from", blob_list, "--json", "--report", str(path)) == 2
    assert json.loads(command.out) == {
        "error": {"code": "blob-gone", "message": "blob 1 is gone", "hint": "look again"}
    }
    assert path.read_text() == command.out
    assert command.err == "vmsnapshot: error: blob 1 is gone\nhint: look again\n"


def test_hint_about_the_trust_store_names_the_option_that_the_engine_does_not_know(
    command: Command, native: FakeNative
) -> None:
    hint = "add the issuer's certificate to the system's trust store"
    native.prepare_error = refusal("no TLS", code="tls-failed", kind="network", hint=hint)
    assert command("snapshot", "--blob", sas_uri(), "--json") == 1
    assert "--ca-file" in command.err.partition("hint: ")[2]
    assert "--ca-file" in json.loads(command.out)["error"]["hint"]


# snapshot: options


def test_snapshot_passes_every_option_to_the_engine(command: Command, native: FakeNative) -> None:
    status = command(
        "snapshot", "--blob", sas_uri(0), sas_uri(1), "--blob", sas_uri(2),
        "--mount", "/data*", "--mount", "xfs", "--exclude", "/data2",
        "--metadata", "job=nightly", "--metadata", "note=a=b c",
        "--thaw-timeout", "2.5", "--freeze-timeout", "1.5", "--connect-timeout", "3", "--sync-timeout", "4",
        "--call-timeout", "1.25",
        "--ca-file", "/etc/ca.pem", "--proxy", "http://proxy:3128", "--no-expedite-rcu",
        "--quiesce", "hook:/etc/app.sh",
    )  # fmt: skip
    assert status == 0
    assert native.prepare_blobs == [sas_uri(0), sas_uri(1), sas_uri(2)]
    assert native.plan_arguments == {"include": ["/data*", "xfs"], "exclude": ["/data2"]}
    options = dict(native.prepare_arguments)
    assert callable(options.pop("progress"))
    assert options == {
        "metadata": {"job": "nightly", "note": "a=b c"},
        "thaw_timeout": 2.5,
        "freeze_timeout": 1.5,
        "call_timeout": 1.25,
        "connect_timeout": 3.0,
        "sync_timeout": 4.0,
        "ca_file": "/etc/ca.pem",
        "proxy": "http://proxy:3128",
        "expedite_rcu": False,
        "quiescers": [Hook(program="/etc/app.sh")],
    }


def test_snapshot_has_the_defaults_that_the_readme_states(
    command: Command, native: FakeNative, blob_list: str
) -> None:
    assert command("snapshot", "--blobs-from", blob_list) == 0
    options = dict(native.prepare_arguments)
    del options["progress"]
    assert options == {
        "metadata": {},
        "thaw_timeout": 10.0,
        "freeze_timeout": 5.0,
        "call_timeout": 10.0,
        "connect_timeout": 10.0,
        "sync_timeout": 30.0,
        "ca_file": None,
        "proxy": None,
        "expedite_rcu": True,
        "quiescers": [],
    }


def test_sync_timeout_of_zero_skips_the_sync(command: Command, native: FakeNative, blob_list: str) -> None:
    assert command("snapshot", "--blobs-from", blob_list, "--sync-timeout", "0") == 0
    assert native.prepare_arguments["sync_timeout"] is None


def test_sas_uri_on_the_command_line_causes_a_warning(command: Command) -> None:
    assert command("snapshot", "--blob", sas_uri()) == 0
    assert "every user" in command.err
    assert "--blobs-from" in command.err


@pytest.mark.parametrize("option", ["--thaw-timeout", "--freeze-timeout"])
@pytest.mark.parametrize("seconds", ["0", "0.009", "-1", "nan", "inf", "3600.1", "1e9", "soon", "", "-inf"])
def test_limit_of_the_window_out_of_range_exits_2_before_anything_is_done(
    command: Command, native: FakeNative, blob_list: str, option: str, seconds: str
) -> None:
    assert command("snapshot", "--blobs-from", blob_list, f"{option}={seconds}") == 2
    assert option in command.err
    assert native.calls == []


@pytest.mark.parametrize("name", ["thaw_timeout", "freeze_timeout"])
@pytest.mark.parametrize("seconds", ["0.01", "3600"])
def test_limit_of_the_window_at_either_end_is_accepted(
    command: Command, native: FakeNative, blob_list: str, name: str, seconds: str
) -> None:
    option = f"--{name.replace('_', '-')}"
    assert command("snapshot", "--blobs-from", blob_list, option, seconds) == 0
    assert native.prepare_arguments[name] == float(seconds)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["shapshot"],
        [sas_uri()],
        ["snapshot"],
        ["snapshot", sas_uri()],
        ["snapshot", "--blob"],
        ["snapshot", "--blob", ""],
        ["snapshot", "--blob", sas_uri() + "\udcff"],
        ["snapshot", "--blob", f"two {sas_uri()}"],
        ["snapshot", "--blobs-from", sas_uri()],
        ["snapshot", "--blobs-from", "disks", "--blob", sas_uri()],
        ["snapshot", "--blob", sas_uri(), "--mount", sas_uri()],
        ["snapshot", "--blob", sas_uri(), "--report", sas_uri()],
        ["snapshot", "--blobs-from", quote(sas_uri(), safe="")],
        ["snapshot", "--blobs-from", quote(quote(sas_uri(), safe=""), safe="")],
        ["snapshot", "--blob", sas_uri(), "--mount", quote(sas_uri(), safe="")],
        ["snapshot", "--blob", sas_uri(), "--mount", "https%3a%2f%2facct.blob.example"],
        ["snapshot", "--blobs-from", f"disks?SIG={SIGNATURE}"],
        ["snapshot", "--blobs-from", f"disks?SIG%3d{SIGNATURE}"],
        ["snapshot", "--blob", sas_uri(), f"--json={sas_uri()}"],
        ["snapshot", "--blob", sas_uri(), f"--unknown={sas_uri()}"],
        ["snapshot", "--blob", sas_uri(), "--thaw-timeout", sas_uri()],
        ["snapshot", "--blob", sas_uri(), "--metadata", SIGNATURE],
        ["snapshot", "--blob", sas_uri(), "--metadata", f"a b={SIGNATURE}"],
        ["snapshot", "--blob", sas_uri(), "--metadata", f"a={SIGNATURE}é"],
        ["snapshot", "--blob", sas_uri(), "--metadata", f"a={SIGNATURE}", "--metadata", f"A={SIGNATURE}"],
        ["snapshot", "--blob", sas_uri(), "--proxy", f"http://u:{SIGNATURE}@p", "--no-proxy"],
        ["plan", "--include"],
        ["plan", "--include", ""],
        ["plan", sas_uri()],
        ["status", "--what", SIGNATURE],
    ],
)
def test_bad_arguments_exit_2_without_repeating_a_value(
    command: Command, native: FakeNative, arguments: list[str]
) -> None:
    assert command(*arguments) == 2
    assert "vmsnapshot: error: " in command.err
    assert SIGNATURE not in command.out + command.err
    assert "prepare" not in native.calls


def test_bad_arguments_are_json_too_when_asked_for(command: Command) -> None:
    assert command("snapshot", "--json") == 2
    assert json.loads(command.out)["error"]["code"] == "bad-arguments"


def test_unknown_option_is_named(command: Command) -> None:
    assert command("plan", "--frobnicate=1") == 2
    assert "`--frobnicate`" in command.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "--help"], ["snapshot", "--help"], ["thaw", "--help"]]
)
def test_help_has_examples_and_exit_statuses(command: Command, arguments: list[str]) -> None:
    assert command(*arguments) == 0
    assert "examples:" in command.out or "exit status" in command.out


def test_help_of_patterns_names_every_form(command: Command) -> None:
    assert command("plan", "--help") == 0
    for form in ("/data*", "/srv/**", "xfs", "/dev/sdb1", "8:17"):
        assert form in command.out


def test_version_is_that_of_the_engine(command: Command) -> None:
    assert command("--version") == 0
    assert command.out == "vmsnapshot 0.1.0\n"


def test_no_output_holds_a_secret(command: Command, native: FakeNative, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for report in (native.report, FAILED_REPORT, STUCK_REPORT):
        native.report = report
        for form in ([], ["--json"]):
            command(
                "snapshot", "--blob", sas_uri(), "--metadata", f"k={SIGNATURE}", "--report", str(path),
                "--proxy", f"http://user:{SIGNATURE}@proxy:3128", *form,
            )  # fmt: skip
            assert SIGNATURE not in command.out + command.err + path.read_text()


# snapshot: report file


def test_report_into_a_missing_directory_exits_2_before_the_freeze(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(tmp_path / "no" / "report")) == 2
    assert native.calls == []


def test_report_onto_a_directory_exits_2_before_the_freeze(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(tmp_path)) == 2
    assert native.calls == []


def test_report_file_that_becomes_unwritable_in_the_run_exits_1_and_prints_the_report(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    directory = tmp_path / "reports"
    directory.mkdir()
    native.on_run = directory.rmdir
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(directory / "report")) == 1
    assert "could not be written" in command.err
    assert "complete and consistent" in command.out


def test_report_is_not_written_to_a_filesystem_that_is_still_frozen(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    path = tmp_path / "report"
    device = mountinfo_device_of(tmp_path)
    native.report = replace(
        STUCK_REPORT, filesystems=[FilesystemOutcome(device=device, outcome="not-thawed", thawed_by=None)]
    )
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(path)) == 3
    assert not path.exists()
    assert "still frozen" in command.err


def mountinfo_device_of(directory: Path) -> str:
    """Returns the device of `directory` as mountinfo has it, found by the mount id of an open file."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        information = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    mount_id = information.split("mnt_id:")[1].split()[0]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[0] == mount_id:
            return line.split()[2]
    raise AssertionError("mountinfo has no such mount")


# snapshot: interruptions


def test_interrupt_before_the_window_exits_130_and_says_that_nothing_was_frozen(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path
) -> None:
    path = tmp_path / "report"
    native.prepare_error = KeyboardInterrupt()
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(path), "--json") == 130
    assert "nothing was frozen" in command.err
    assert json.loads(command.out)["error"]["code"] == "interrupted"
    assert path.read_text() == command.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_the_sync_phase_ends_the_run_before_the_window(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "report"
    before = signal.getsignal(number)
    native.on_sync = lambda: os.kill(os.getpid(), number)
    native.on_run = lambda: pytest.fail("the window was opened")
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(path)) == 130
    assert "nothing was frozen" in command.err
    assert json.loads(path.read_text())["error"]["code"] == "interrupted"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_the_window_changes_neither_report_nor_exit_status(
    command: Command, native: FakeNative, blob_list: str, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "report"
    before = signal.getsignal(number)

    def interrupt() -> None:
        os.kill(os.getpid(), number)

    native.on_run = interrupt
    assert command("snapshot", "--blobs-from", blob_list, "--report", str(path)) == 0
    assert json.loads(path.read_text())["consistent"] is True
    assert number.name in command.err
    assert "complete and consistent" in command.out
    assert signal.getsignal(number) == before


# snapshot: progress


def test_phase_is_printed_when_it_lasts(
    command: Command, native: FakeNative, blob_list: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()

    def say_and_tell(message: str) -> None:
        streams.say(message)
        said.set()

    def last(tell: Callable[[str], None]) -> None:
        tell("connect")
        assert said.wait(10), "nothing was said within 10 s"

    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)
    monkeypatch.setattr(progress, "say", say_and_tell)
    native.on_prepare = last
    assert command("snapshot", "--blobs-from", blob_list) == 0
    assert command.err == "vmsnapshot: connecting to the blobs\nvmsnapshot: freezing\n"


def test_short_phases_are_not_printed_to_a_pipe(command: Command, native: FakeNative, blob_list: str) -> None:
    native.on_prepare = lambda tell: tell("connect")
    assert command("snapshot", "--blobs-from", blob_list) == 0
    assert command.err == ""


def test_every_phase_is_printed_to_a_terminal(
    command: Command, native: FakeNative, blob_list: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "is_terminal", lambda _name: True)
    native.on_prepare = lambda tell: tell("connect")
    assert command("snapshot", "--blobs-from", blob_list) == 0
    assert command.err == "vmsnapshot: connecting to the blobs\nvmsnapshot: freezing\n"


def test_no_progress_thread_runs_in_the_window(command: Command, native: FakeNative, blob_list: str) -> None:
    before = threading.active_count()
    running: list[int] = []
    tellers: list[Callable[[str], None]] = []
    native.on_prepare = tellers.append

    def run() -> None:
        # The engine reports these phases from inside `run`, the second just before the window.
        tellers[0]("sync")
        tellers[0]("freeze")
        running.append(threading.active_count())

    native.on_run = run
    assert command("snapshot", "--blobs-from", blob_list) == 0
    assert running == [before]
    assert command.err == ""


def test_freezing_is_printed_at_once_when_an_earlier_phase_was_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()
    monkeypatch.setattr(progress, "PATIENCE_S", 0.01)

    def say_and_tell(message: str) -> None:
        streams.say(message)
        said.set()

    monkeypatch.setattr(progress, "say", say_and_tell)
    shown = progress.Progress()
    shown("sync")
    assert said.wait(10), "nothing was said within 10 s"
    shown("freeze")
    assert capsys.readouterr().err == "vmsnapshot: writing out dirty data\nvmsnapshot: freezing\n"


# status and thaw


def test_status_exits_0_when_nothing_is_frozen(command: Command) -> None:
    assert command("status") == 0
    assert command.out == "nothing is frozen by vmsnapshot\n"


def test_status_exits_3_and_shows_what_is_frozen(command: Command, native: FakeNative) -> None:
    native.status_document = ONE_FROZEN
    assert command("status") == 3
    assert command.out.startswith("1 filesystem is frozen; run `vmsnapshot thaw`\n")
    for text in ("/data", "run-1", "2026-11-22T10:26:21.8Z", "ended early", "expedited RCU"):
        assert text in command.out
    assert command("status", "--json") == 3
    assert json.loads(command.out) == ONE_FROZEN


def test_status_does_not_suggest_thaw_while_the_run_is_at_work(command: Command, native: FakeNative) -> None:
    native.status_document = {**ONE_FROZEN, "runs": [{**ONE_FROZEN["runs"][0], "state": "at-work"}]}
    assert command("status") == 3
    assert "vmsnapshot thaw" not in command.out
    assert "thawed by 2026-11-22T10:26:31.7Z" in command.out


def test_status_does_not_suggest_thaw_while_the_watchdog_of_a_late_run_thaws(
    command: Command, native: FakeNative
) -> None:
    late = {**ONE_FROZEN["runs"][0], "state": "late", "watchdog_alive": True}
    native.status_document = {**ONE_FROZEN, "runs": [late]}
    assert command("status") == 3
    assert command.out.splitlines()[0] == (
        "1 filesystem is frozen; its watchdog calls FITHAW until it succeeds"
    )
    assert "vmsnapshot thaw" not in command.out


def test_status_suggests_thaw_if_only_one_of_two_runs_has_a_watchdog(
    command: Command, native: FakeNative
) -> None:
    dead, late = ONE_FROZEN["runs"][0], {**ONE_FROZEN["runs"][0], "run_id": "run-2", "state": "late"}
    frozen = [*ONE_FROZEN["frozen"], {**ONE_FROZEN["frozen"][0], "run_id": "run-2"}]
    native.status_document = {**ONE_FROZEN, "frozen": frozen, "runs": [dead, late]}
    assert command("status") == 3
    assert command.out.startswith("2 filesystems are frozen; run `vmsnapshot thaw`\n")


def test_status_exits_1_when_a_ledger_cannot_be_read(command: Command, native: FakeNative) -> None:
    ledger = {"path": "/run/vmsnapshot/x.ledger", "why": "the file is not a ledger"}
    native.status_document = {**NOTHING_FROZEN, "unreadable": [ledger]}
    assert command("status") == 1
    assert command.out.splitlines()[0] == (
        "it is not known whether something is frozen: a ledger could not be read"
    )
    assert ledger["path"] in command.out


def test_status_exits_1_when_it_cannot_read_the_state(command: Command, native: FakeNative) -> None:
    native.status_error = ThawError(
        "could not read `/run/vmsnapshot`", code="not-privileged", kind="arguments"
    )
    assert command("status") == 1
    assert command.out == ""


THAWED = {"mount_point": "/data", "device": "8:17", "run_id": "run-1"}
LEFT_ALONE = {"mount_point": "/srv", "run_id": "run-2", "why": "the run is at work"}


@pytest.mark.parametrize(
    ("changes", "status", "first_line"),
    [
        ({}, 0, "there was nothing to thaw"),
        ({"thawed": [THAWED]}, 0, "thawed 1 filesystem; no run has left anything frozen"),
        (
            {"thawed": [THAWED], "left_alone": [LEFT_ALONE]},
            1,
            "thawed 1 filesystem; something was left alone (below)",
        ),
        (
            {"thawed": [THAWED], "failed": [{**THAWED, "error": "input/output error"}]},
            3,
            "NOT THAWED: 1 filesystem is still frozen; run `vmsnapshot thaw` again",
        ),
    ],
)
def test_thaw_prints_what_it_thawed_and_what_it_left_alone(
    command: Command, native: FakeNative, changes: dict[str, object], status: int, first_line: str
) -> None:
    native.thaw_document = {**NOTHING_THAWED, **changes}
    assert command("thaw") == status
    assert command.out.splitlines()[0] == first_line
    assert command("thaw", "--json") == status
    assert json.loads(command.out) == native.thaw_document


def test_failed_thaw_exits_1_when_nothing_is_frozen(command: Command, native: FakeNative) -> None:
    native.thaw_error = ThawError("not root", code="not-root", kind="arguments")
    assert command("thaw") == 1


def test_failed_thaw_exits_3_when_something_is_frozen(command: Command, native: FakeNative) -> None:
    native.thaw_error = ThawError("not root", code="not-root", kind="arguments")
    native.status_document = ONE_FROZEN
    assert command("thaw", "--json") == 3
    assert json.loads(command.out)["error"]["code"] == "not-root"


def test_failed_thaw_exits_3_when_the_status_fails_too(command: Command, native: FakeNative) -> None:
    native.thaw_error = ThawError("not root", code="not-root", kind="arguments")
    native.status_error = ThawError("unreadable", code="state-unusable", kind="system")
    assert command("thaw") == 3
