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


@pytest.mark.parametrize("umask", [0o022, 0o000])
@pytest.mark.parametrize("shell", SHELLS)
def test_only_the_owner_can_read_what_the_entry_script_writes(tmp_path: Path, shell: str, umask: int) -> None:
    base, logs = tmp_path / "Publisher.Name-1.0", tmp_path / "logs"
    (base / "bin").mkdir(parents=True)
    logs.mkdir()
    environment = [{"name": "Publisher.Name", "handlerEnvironment": {"logFolder": str(logs)}}]
    (base / "HandlerEnvironment.json").write_text(json.dumps(environment))
    script = base / "bin/handler"
    text = (REPOSITORY / "handler/bin/handler").read_text()
    script.write_text(re.sub(r"^search=.*$", "search=/nonexistent", text, count=1, flags=re.MULTILINE))
    ran = subprocess.run(
        [shell, str(script), "enable"],
        env={"PATH": os.defpath, "ConfigSequenceNumber": "7"},
        capture_output=True,
        umask=umask,
        timeout=30,
    )
    assert ran.returncode == 3
    for path in (logs / "shell.log", base / "status/7.status"):
        assert path.stat().st_size > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
