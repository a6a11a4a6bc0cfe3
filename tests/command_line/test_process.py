"""The command as a process: closed, full and broken streams, and signals from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vmsnapshot
from tests.support.fake_native import sas_uri

ROOT = Path(__file__).resolve().parents[2]

# The stand-in takes the compiled module's place before the package is imported. The first argument
# is code with which the test sets the stand-in up.
PROGRAM = """
import sys
from tests.support import fake_native
native = fake_native.install()
exec(compile(sys.argv.pop(1), "setting", "exec"))
from vmsnapshot.__main__ import main
sys.exit(main())
"""


def start(
    *arguments: str,
    setting: str = "",
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    packages = Path(vmsnapshot.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    # Users have buffered output. Its write fails a second time when the interpreter ends.
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, setting, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


@pytest.fixture
def snapshot(tmp_path: Path) -> list[str]:
    blobs = tmp_path / "disks"
    blobs.write_text(sas_uri() + "\n")
    return ["snapshot", "--blobs-from", str(blobs), "--report", str(tmp_path / "report"), "--no-proxy"]


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_broken_pipe_changes_neither_report_nor_exit_status(
    snapshot: list[str], tmp_path: Path, form: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*snapshot, *form, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert finish(process) == (0, "", "")
    assert json.loads((tmp_path / "report").read_text())["consistent"] is True


def test_closed_streams_change_neither_report_nor_exit_status(snapshot: list[str], tmp_path: Path) -> None:
    setting = (
        "import os; [os.close(number) for number in (0, 1, 2)]; sys.stdin = sys.stdout = sys.stderr = None"
    )
    process = start(*snapshot, setting=setting)
    assert finish(process)[0] == 0
    assert json.loads((tmp_path / "report").read_text())["consistent"] is True


def test_full_disk_under_standard_output_exits_1_without_a_traceback(
    snapshot: list[str], tmp_path: Path
) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*snapshot, stdout=full.fileno(), stderr=subprocess.PIPE)
    status, _, err = finish(process)
    assert status == 1
    assert err == "vmsnapshot: error: could not write to standard output: no space left on device\n"
    assert json.loads((tmp_path / "report").read_text())["consistent"] is True


def test_full_disk_does_not_replace_exit_status_3(snapshot: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(
            *snapshot,
            setting="native.report = fake_native.STUCK_REPORT",
            stdout=full.fileno(),
            stderr=full.fileno(),
        )
    assert finish(process)[0] == 3


def test_ctrl_c_before_the_window_exits_130_without_a_traceback(snapshot: list[str], tmp_path: Path) -> None:
    setting = (
        "import os, time; native.on_prepare = lambda tell: (os.write(1, b'preparing\\n'), time.sleep(30))"
    )
    process = start(*snapshot, setting=setting, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"preparing\n"
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out) == (130, "")
    assert err == "vmsnapshot: error: interrupted; nothing was frozen\n"
    assert json.loads((tmp_path / "report").read_text())["error"]["code"] == "interrupted"


def test_ctrl_c_in_the_window_does_not_prevent_the_report(snapshot: list[str], tmp_path: Path) -> None:
    setting = (
        "import os, sys\n"
        "native.on_run = lambda: (os.write(1, b'running\\n'), sys.stdin.readline())\n"
    )  # fmt: skip
    process = start(
        *snapshot, setting=setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 0
    assert "complete and consistent" in out
    assert "SIGINT" in err
    assert json.loads((tmp_path / "report").read_text())["consistent"] is True


def test_module_runs_as_a_program() -> None:
    process = start("status", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert finish(process) == (0, "nothing is frozen by vmsnapshot\n", "")
