"""Odd arguments, limits and interruptions of the process: an error with a code, and never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartFaultServer, require
from tests.support.command import COMMAND, Finished, run_command
from tests.support.control_groups import ENTER
from tests.support.filesystems import ScratchFilesystem
from tests.support.freezing import is_frozen
from tests.support.mounts import read_mounts

URI = "http://127.0.0.1:9/a/b?sig=c2lnbmF0dXJl"
NO_UTF8 = os.fsdecode(b"/missing\xff")

INTERRUPT_IN_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "vmsnapshot.cli.arguments":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
"""


def refused(*arguments: str, status: int = 2) -> Finished:
    finished = run_command(*arguments, "--json")
    assert "Traceback" not in finished.errors, finished.errors
    assert finished.errors.count("vmsnapshot: error: ") == 1
    assert finished.status == status
    return finished


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize("option", ["--include", "--mount"])
def test_pattern_that_is_not_utf8_is_refused_as_it_is_printed(option: str) -> None:
    arguments = ("plan",) if option == "--include" else ("snapshot", f"--blob={URI}")
    finished = refused(*arguments, f"{option}={NO_UTF8}")
    assert finished.error_code == "no-such-mount"
    assert finished.document["error"]["message"] == "`/missing\\xff` is not a mount point"


@pytest.mark.usefixtures("compiled_engine")
def test_exclude_pattern_that_is_not_utf8_is_a_pattern() -> None:
    finished = run_command("plan", "--json", f"--exclude={NO_UTF8}")
    assert finished.status == 0
    assert "the exclude pattern `/missing\\xff` matches nothing" in finished.errors


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize(
    ("option", "code"),
    [
        (f"--proxy=http://host{NO_UTF8[-1]}:80", "bad-proxy"),
        (f"--report={NO_UTF8}/report", "report-unwritable"),
    ],
)
def test_other_value_that_is_not_utf8_has_an_error_with_a_code(option: str, code: str) -> None:
    finished = refused("snapshot", f"--blob={URI}", "--mount=/missing", option)
    assert finished.error_code == code


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize("as_json", [True, False])
def test_interruption_while_modules_are_imported_has_no_traceback(tmp_path: Path, as_json: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_IN_IMPORT)
    options = ["--json"] if as_json else []
    finished = run_command("plan", *options, environment={"PYTHONPATH": str(tmp_path)})
    assert (finished.status, finished.errors) == (
        130,
        "vmsnapshot: error: interrupted; nothing was frozen\n",
    )
    if as_json:
        assert finished.error_code == "interrupted"
    else:
        assert finished.output == ""


@pytest.mark.usefixtures("compiled_engine")
def test_command_without_memory_ends_with_an_error_or_its_result() -> None:
    unlimited = run_command("plan", "--json")
    assert unlimited.status == 0
    loaded = failed = 0
    for mebibytes in range(20, 44, 3):
        limit = mebibytes << 20
        ran = subprocess.run(
            ["prlimit", f"--as={limit}", COMMAND, "plan", "--json"],
            capture_output=True,
            timeout=20,
            check=False,
        )
        if b"vmsnapshot/__main__.py" not in ran.stderr and b"Traceback" in ran.stderr:
            # The interpreter itself could not start.
            continue
        assert b"Traceback" not in ran.stderr, ran.stderr
        document = json.loads(ran.stdout)
        if ran.returncode == 0:
            loaded += 1
        else:
            failed += 1
            assert document["error"]["code"] in ("not-loaded", "out-of-memory", "unexpected")
    assert failed, "no limit was too low"
    assert loaded, "no limit was high enough"


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize(
    ("path", "code"), [("/", "blob-list-unreadable"), ("/dev/zero", "blob-list-too-long")]
)
def test_list_of_blobs_without_an_end_is_refused(path: str, code: str) -> None:
    finished = refused("snapshot", f"--blobs-from={path}", "--mount=/missing")
    assert finished.error_code == code


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize("kind", ["link", "named pipe", "directory", "socket"])
def test_report_replaces_only_a_regular_file(tmp_path: Path, kind: str) -> None:
    report = tmp_path / "report"
    (tmp_path / "target").write_text("target")
    if kind == "link":
        report.symlink_to(tmp_path / "target")
    elif kind == "directory":
        report.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(report))
    else:
        os.mkfifo(report)
    before = report.lstat().st_mode
    finished = refused("snapshot", f"--blob={URI}", "--mount=/missing", f"--report={report}")
    assert finished.error_code == "report-unwritable"
    assert "it is a directory" in finished.errors or "it is not a regular file" in finished.errors
    assert (tmp_path / "target").read_text() == "target"
    assert report.lstat().st_mode == before


@pytest.fixture
def group_of_few_tasks(root: None) -> Iterator[Path]:  # noqa: ARG001 (requested for its effect)
    """A control group that limits the number of processes and threads in it."""
    mounts = read_mounts()
    roots = [
        mount.mount_point
        for mount in mounts
        if (mount.filesystem_type == "cgroup" and mount.mount_point.name == "pids")
        or (
            mount.filesystem_type == "cgroup2"
            and "pids" in (mount.mount_point / "cgroup.subtree_control").read_text().split()
        )
    ]
    require(bool(roots), "needs a hierarchy with the controller `pids`")
    group = roots[0] / f"vmsnapshot-test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.usefixtures("compiled_engine")
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_snapshot_without_a_thread_to_be_had_ends_with_an_error(
    group_of_few_tasks: Path,
    fault_server: StartFaultServer,
    disk: ScratchFilesystem,
    tasks: int,
    as_json: bool,
) -> None:
    (group_of_few_tasks / "pids.max").write_text(str(tasks))
    server = fault_server()
    arguments = ["snapshot", f"--mount={disk.mount_point}", f"--blob={server.uri('disk')}", "--no-proxy"]
    finished = run_command(
        *arguments, *(["--json"] if as_json else []), before=(*ENTER, str(group_of_few_tasks))
    )
    assert finished.status not in (0, -6), finished
    assert "Traceback" not in finished.errors
    assert "panicked" not in finished.errors
    assert finished.errors.count("vmsnapshot: error: ") == 1
    cause = "resource temporarily unavailable"
    assert cause in finished.errors.lower()
    if as_json:
        assert finished.document["error"]["code"]
        assert cause in finished.document["error"]["message"]
    assert not is_frozen(disk.mount_point)
    assert server.requests() == []
