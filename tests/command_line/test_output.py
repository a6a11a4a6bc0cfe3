"""What the command prints of a real run, and what it never prints."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tests.conftest import StartFaultServer
from tests.support.command import SnapshotRun, read_status, run_command, run_of
from tests.support.fault_server import Creates, Refuses, Resets
from tests.support.filesystems import ScratchFilesystem


def test_tables_state_the_outcome_that_the_exit_status_gives(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    server.script("refused", Refuses(409, "SnapshotCountExceeded"))

    def words(*blobs: str) -> tuple[int, str]:
        finished = run_command(
            "snapshot",
            "--no-proxy",
            "--blobs-from=-",
            f"--mount=mount={disk.mount_point}",
            standard_input="\n".join(server.uri(blob) for blob in blobs),
        )
        assert "\x1b" not in finished.output
        return finished.status, finished.output

    status, text = words("disk")
    assert status == 0
    assert "consistent" in text
    status, text = words("disk", "refused")
    assert status == 1
    assert "SnapshotCountExceeded" in text
    assert "thawed" in text


def test_no_secret_is_in_output_status_ledger_or_the_watchdog(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    server.script("slow", Creates(after_ms=800))
    server.script("refused", Refuses(403, "AuthorizationFailure"))
    server.script("lost", Resets())
    uris = [server.uri(blob) for blob in ("slow", "refused", "lost")]
    secrets = ["c2lnbmF0dXJl", "sig=", "metas3cret"]
    metadata = "--metadata=Password=metas3cret"
    with SnapshotRun([disk.mount_point], uris, metadata) as run:
        run.wait_until_open(server, requests=4)
        watched = run_of(read_status(), run.run_id())
        seen = {
            "arguments of the watchdog": Path(f"/proc/{watched['watchdog_pid']}/cmdline").read_bytes(),
            "environment of the watchdog": Path(f"/proc/{watched['watchdog_pid']}/environ").read_bytes(),
            "status": json.dumps(read_status()).encode(),
        }
        for path in Path("/run/vmsnapshot").iterdir():
            with contextlib.suppress(FileNotFoundError):
                seen[str(path)] = path.read_bytes()
        finished = run.finish()
    assert finished.status == 1
    seen["output"], seen["errors"] = finished.output.encode(), finished.errors.encode()
    assert any(place.endswith(".ledger") for place in seen)
    assert "vmsnapshot-watchdog" in seen["arguments of the watchdog"].decode()
    for place, content in seen.items():
        for secret in secrets:
            assert secret.encode() not in content, place
    heads = [request.head for request in server.requests()]
    assert all(b"c2lnbmF0dXJl" in head and b"metas3cret" in head for head in heads)


def test_uris_on_the_command_line_work_and_cause_a_warning(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    finished = run_command(
        "snapshot",
        "--json",
        "--no-proxy",
        f"--mount=mount={disk.mount_point}",
        "--blob",
        fault_server().uri("disk"),
    )
    assert finished.status == 0
    assert "warning" in finished.errors
    assert "c2lnbmF0dXJl" not in finished.errors + finished.output
