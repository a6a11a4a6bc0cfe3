"""The files that the entry script writes by itself: the shell log, and a status if no Python is found.

How the script finds a Python, and what it writes, is tested in tests/extension/package.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.filesystems import REPOSITORY

SHELLS = [path for path in map(shutil.which, ("sh", "bash", "ksh", "zsh")) if path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Makes a directory of the extension with an entry script that finds no Python."""
    base, logs = tmp_path / "Publisher.Name-1.0", tmp_path / "logs"
    (base / "bin").mkdir(parents=True)
    (base / "config").mkdir()
    logs.mkdir()
    environment = [{"name": "Publisher.Name", "handlerEnvironment": {"logFolder": str(logs)}}]
    (base / "HandlerEnvironment.json").write_text(json.dumps(environment))
    text = (REPOSITORY / "handler/bin/handler").read_text()
    script = re.sub(r"^search=.*$", "search=/nonexistent", text, count=1, flags=re.MULTILINE)
    (base / "bin/handler").write_text(script)
    return base


def enable(base: Path, shell: str, umask: int = 0o022) -> None:
    """Runs enable of job 7, which must end with a status."""
    ran = subprocess.run(
        [shell, str(base / "bin/handler"), "enable"],
        env={"PATH": os.defpath, "ConfigSequenceNumber": "7"},
        capture_output=True,
        umask=umask,
        timeout=15,
    )
    assert ran.returncode == 3
    (document,) = json.loads((base / "status/7.status").read_text())
    assert document["status"]["status"] == "error"


@pytest.mark.parametrize("umask", [0o022, 0o000])
@pytest.mark.parametrize("shell", SHELLS)
def test_only_the_owner_can_read_what_the_entry_script_writes(base: Path, shell: str, umask: int) -> None:
    enable(base, shell, umask)
    for path in (base.parent / "logs/shell.log", base / "status/7.status"):
        assert path.stat().st_size > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((base / "status").stat().st_mode) == 0o755


@pytest.mark.parametrize("target", [None, "/dev/zero"], ids=["named pipe", "link to a device"])
@pytest.mark.parametrize(
    "place", ["HandlerEnvironment.json", "mrseq", "config/7.settings", "../logs/shell.log"]
)
@pytest.mark.parametrize("shell", SHELLS)
def test_status_is_written_whatever_is_in_the_place_of_a_file(
    base: Path, shell: str, place: str, target: str | None
) -> None:
    path = base / place
    path.unlink(missing_ok=True)
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    enable(base, shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_shell_log_that_is_a_link_is_not_written_to(base: Path, shell: str, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("target")
    (tmp_path / "logs/shell.log").symlink_to(tmp_path / "target")
    enable(base, shell)
    assert (tmp_path / "target").read_text() == "target"
