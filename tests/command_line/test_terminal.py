"""The command on a terminal: what it prints, and where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import vmsnapshot

PACKAGES = Path(vmsnapshot.__file__).resolve().parents[1]
NO_URI_THEN_CTRL_D = b"no URI\n\x04"


def read_from_a_terminal(*, stderr: int | None) -> subprocess.CompletedProcess[bytes]:
    """Runs a snapshot whose list of blobs is typed; closes standard error when `stderr` is None."""
    terminal, standard_input = pty.openpty()
    try:
        os.write(terminal, NO_URI_THEN_CTRL_D)
        return subprocess.run(
            [sys.executable, "-m", "vmsnapshot", "snapshot", "--blobs-from", "-", "--json"],
            stdin=standard_input,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": str(PACKAGES)},
            preexec_fn=None if stderr is not None else lambda: os.close(2),
            timeout=30,
            check=False,
        )
    finally:
        os.close(standard_input)
        os.close(terminal)


@pytest.mark.usefixtures("compiled_engine")
def test_a_list_that_is_typed_is_asked_for_on_standard_error() -> None:
    done = read_from_a_terminal(stderr=subprocess.PIPE)
    assert b"Ctrl-D" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "blob-list-malformed"


@pytest.mark.usefixtures("compiled_engine")
def test_json_output_is_valid_when_standard_error_is_closed() -> None:
    done = read_from_a_terminal(stderr=None)
    assert json.loads(done.stdout)["error"]["code"] == "blob-list-malformed"
    assert done.returncode == 2
