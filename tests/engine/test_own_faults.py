"""Faults of the run itself: panics and errors in the window, and writes to what it has frozen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import THAW_LIMIT_MS, Machine
from tests.support import processes
from tests.support.command import SnapshotRun, read_status
from tests.support.fault_server import Creates
from tests.support.filesystems import REPOSITORY

# The thaw timeout in the source of the example.
EXAMPLE_TIMEOUT_MS = 1000.0


@pytest.fixture(scope="session")
def faulty_run() -> Path:
    """Builds the example program that puts a fault into a real run, as `make test` builds it."""
    flags = ["--workspace", "--exclude", "vmsnapshot-native", "--release", "--locked"]
    subprocess.run(
        ["cargo", "build", "--quiet", "--examples", *flags], cwd=REPOSITORY, check=True, timeout=300
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return (REPOSITORY / target / "release/examples/faulty_run").resolve()


def run_with(program: Path, fault: str, machine: Machine) -> Any:
    """Runs the example with standard error on the filesystem that it freezes."""
    with (machine.mount_points[0] / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [program, fault, *machine.mount_points], stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None
        output = process.stdout.read()
        assert processes.end(process, limit_seconds=20.0)
    assert process.returncode == 0, (machine.mount_points[0] / "errors").read_text()
    return json.loads(output)


@pytest.mark.timeout(360)  # the first one may have to compile
@pytest.mark.parametrize("fault", ["panic-in-freeze", "panic-in-thaw", "eio-in-thaw"])
def test_a_fault_in_the_window_with_standard_error_on_a_frozen_filesystem_does_not_prevent_the_thaw(
    machine: Machine, faulty_run: Path, fault: str
) -> None:
    report = run_with(faulty_run, fault, machine)
    assert report["all_thawed"] is True
    for writer in machine.writers:
        writer.wait_until_writing()
        assert writer.longest_stall_ms() < EXAMPLE_TIMEOUT_MS / 2
    machine.assert_rcu_is_back()
    outcomes = {filesystem["outcome"] for filesystem in report["filesystems"]}
    if fault == "eio-in-thaw":
        assert (outcomes, report["consistent"]) == ({"thawed"}, True)
    elif fault == "panic-in-freeze":
        # The run did not know whether it froze, so it ended the window.
        assert (outcomes, report["consistent"]) == ({"thawed"}, False)
    else:
        # The run did not know whether it thawed. The next FITHAW found it thawed, and doubt is a failure.
        assert (outcomes, report["consistent"]) == ({"thawed-by-another"}, False)


@pytest.mark.timeout(360)
def test_a_filesystem_that_the_kernel_cannot_freeze_puts_the_freeze_in_doubt_and_does_not_end_it(
    machine: Machine, faulty_run: Path
) -> None:
    report = run_with(faulty_run, "eopnotsupp-in-freeze", machine)
    by_outcome = {filesystem["outcome"]: filesystem for filesystem in report["filesystems"]}
    assert set(by_outcome) == {"thawed", "not-freezable"}
    assert (report["all_thawed"], report["consistent"]) == (True, False)
    assert report["freeze_doubt_code"] == "not-freezable"
    refused = by_outcome["not-freezable"]
    assert f"`{refused['mount_point']}` ({refused['filesystem_type']})" in report["freeze_doubt"]
    machine.assert_rcu_is_back()


@pytest.mark.timeout(360)
@pytest.mark.parametrize("fault", ["panic-in-every-thaw", "eio-in-every-thaw"])
def test_watchdog_thaws_what_the_run_cannot(machine: Machine, faulty_run: Path, fault: str) -> None:
    report = run_with(faulty_run, fault, machine)
    assert {filesystem["outcome"] for filesystem in report["filesystems"]} == {"thawed-by-watchdog"}
    assert (report["all_thawed"], report["consistent"]) == (True, False)
    for writer in machine.writers:
        writer.wait_until_writing()
        assert writer.longest_stall_ms() < EXAMPLE_TIMEOUT_MS + THAW_LIMIT_MS
    machine.assert_rcu_is_back()
    assert read_status()["frozen"] == []


def test_a_process_that_writes_to_what_it_freezes_thaws_and_reports(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=300))
    program = """
        import os, sys, threading, time, vmsnapshot
        mounts, uri, path = sys.argv[1:]
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        writes = []
        def write():
            while True:
                start = time.monotonic()
                os.write(file, bytes(4096))
                os.fsync(file)
                print("written", file=sys.stderr, flush=True)
                writes.append(time.monotonic() - start)
        threading.Thread(target=write, daemon=True).start()
        plan = vmsnapshot.plan(include=eval(mounts))
        with vmsnapshot.prepare(plan, blobs=[uri], thaw_timeout=2.0) as session:
            while len(writes) < 10:
                time.sleep(0.01)
            report = session.run()
        while max(writes) < 0.25:
            time.sleep(0.01)
        print(max(writes), file=sys.stderr, flush=True)
        print(report.to_json(), flush=True)
        os._exit(0)
    """
    directory = machine.mount_points[0]
    with (directory / "output").open("wb") as output, (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(program),
                repr([f"mount={path}" for path in machine.mount_points]),
                machine.server.uri("disk"),
                str(directory / "data"),
            ],
            cwd=REPOSITORY,
            stdout=output,
            stderr=errors,
        )
        assert processes.end(process, limit_seconds=20.0)
        assert process.returncode == 0
    report = json.loads((directory / "output").read_text())
    assert (report["consistent"], report["all_thawed"]) == (True, True)
    assert report["window_ms"] < 1000.0
    assert report["filesystems"][0]["thawed_by"] == "run"


def test_the_command_reports_when_all_its_output_is_on_a_frozen_filesystem(machine: Machine) -> None:
    machine.server.script("disk", Creates(after_ms=100))
    directory = machine.mount_points[1]
    report_file = directory / "report"
    with (directory / "output").open("wb") as output, (directory / "errors").open("wb") as errors:
        run = SnapshotRun(
            machine.mount_points,
            [machine.server.uri("disk")],
            f"--report={report_file}",
            output=output.fileno(),
            errors=errors.fileno(),
        )
        with run:
            assert run.finish().status == 0
    document = (directory / "output").read_text()
    assert json.loads(document)["consistent"] is True
    assert report_file.read_text() == document
    assert report_file.stat().st_mode & 0o777 == 0o600
