"""Bad input gives an error with a code and exit status 2, before anything is frozen."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartFaultServer
from tests.support.command import Finished, read_status, run_command
from tests.support.fault_server import FaultServer
from tests.support.filesystems import ScratchFilesystem

ORDINARY_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
ROOT_WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin")


@pytest.fixture
def server(fault_server: StartFaultServer) -> FaultServer:
    """Returns a blob server that must not receive a request."""
    return fault_server()


def refuse(
    disk: ScratchFilesystem,
    server: FaultServer,
    *options: str,
    uris: Sequence[str] | None = None,
    mounts: Sequence[str] | None = None,
    before: Sequence[str] = (),
) -> Finished:
    """Runs a snapshot that must be refused. Checks that it sent no request and froze nothing."""
    patterns = [f"mount={disk.mount_point}"] if mounts is None else mounts
    assert patterns, "a snapshot without a mount would freeze this machine"
    finished = run_command(
        "snapshot",
        "--json",
        "--no-proxy",
        "--blobs-from=-",
        *(f"--mount={pattern}" for pattern in patterns),
        *options,
        standard_input="\n".join([server.uri("disk")] if uris is None else uris),
        before=before,
    )
    assert server.requests() == []
    left = [item["mount_point"] for run in read_status()["runs"] for item in run["filesystems"]]
    assert str(disk.mount_point) not in left
    assert finished.errors.startswith("vmsnapshot: error: "), finished
    assert finished.status == 2, finished
    # The message is one sentence in lower case, without a full stop and without a secret.
    message = finished.document["error"]["message"]
    assert message[0].islower() or message[0] in "`'"
    assert not message.endswith(".")
    assert "c2lnbmF0dXJl" not in finished.output + finished.errors
    return finished


def test_snapshot_refuses_an_ordinary_user(disk: ScratchFilesystem, server: FaultServer) -> None:
    finished = refuse(disk, server, before=ORDINARY_USER)
    assert finished.error_code == "not-privileged"
    assert finished.document["error"]["hint"] == "run as root"


def test_snapshot_refuses_root_without_the_capability(disk: ScratchFilesystem, server: FaultServer) -> None:
    assert refuse(disk, server, before=ROOT_WITHOUT_SYS_ADMIN).error_code == "not-privileged"


@pytest.mark.parametrize("before", [ORDINARY_USER, ()], ids=["ordinary user", "root"])
def test_plan_needs_no_privilege(disk: ScratchFilesystem, before: tuple[str, ...]) -> None:
    finished = run_command("plan", "--json", f"--include={disk.mount_point}", before=before)
    assert finished.status == 0, finished
    assert [item["mount_point"] for item in finished.document["filesystems"]] == [str(disk.mount_point)]


@pytest.mark.parametrize(
    ("pattern", "code"),
    [
        ("/no/such/mount", "no-such-mount"),
        ("/no/such/*", "pattern-matches-nothing"),
        ("type=zfs", "pattern-matches-nothing"),
        ("/dev/no-such-device", "pattern-matches-nothing"),
        ("/proc", "not-freezable"),
        ("/data[", "bad-pattern"),
    ],
)
def test_a_pattern_that_names_nothing_to_freeze_is_refused(
    disk: ScratchFilesystem, server: FaultServer, pattern: str, code: str
) -> None:
    finished = refuse(disk, server, mounts=[pattern])
    assert finished.error_code == code
    assert pattern.partition("=")[2] in finished.errors or pattern in finished.errors


def expired(uri: str) -> str:
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
    start, _, rest = uri.partition("&se=")
    return f"{start}&se={past:%Y-%m-%dT%H%%3A%M%%3A%SZ}&{rest.partition('&')[2]}"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda uri: uri.partition("?")[0], "unsigned-uri"),
        (lambda uri: uri.replace("sig=", "gis="), "unsigned-uri"),
        (lambda uri: uri.replace("http://", "ftp://"), "bad-uri"),
        (lambda uri: uri.replace("http://", ""), "bad-uri"),
        (lambda uri: expired(uri), "expired-sas"),
        (lambda uri: uri.replace("sp=rw", "sp=r"), "sas-permission"),
    ],
    ids=["no query", "no signature", "not HTTP", "no scheme", "expired", "may only read"],
)
def test_an_unusable_uri_is_refused_and_named_by_its_position(
    disk: ScratchFilesystem, server: FaultServer, change: Callable[[str], str], code: str
) -> None:
    finished = refuse(disk, server, uris=[server.uri("first"), change(server.uri("second"))])
    assert finished.error_code == code
    assert "2 of 2" in finished.errors or "second" in finished.errors


def test_two_equal_blobs_are_refused(disk: ScratchFilesystem, server: FaultServer) -> None:
    uris = [server.uri("same"), server.uri("other"), server.uri("same", permission="w")]
    assert refuse(disk, server, uris=uris).error_code == "duplicate-blob"


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN NONSENSE-----\n"])
def test_an_unusable_ca_file_is_refused(
    disk: ScratchFilesystem, server: FaultServer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    uri = server.uri("disk").replace("http://", "https://")
    finished = refuse(disk, server, f"--ca-file={path}", uris=[uri])
    assert finished.error_code == "bad-ca-file"
    assert str(path) in finished.errors


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("named pipe", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
        ("directory", "it is a directory"),
        ("sparse file", "it is longer than 4194304 bytes"),
    ],
)
def test_a_ca_file_without_an_end_is_refused_at_once(
    disk: ScratchFilesystem, server: FaultServer, tmp_path: Path, kind: str, cause: str
) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / "ca.pem"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "sparse file":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    # The limit of memory ends a command that reads on.
    finished = refuse(disk, server, f"--ca-file={path}", before=("prlimit", f"--as={1 << 30}"))
    assert finished.error_code == "bad-ca-file"
    assert f"`{path}`: {cause}" in finished.errors


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "3600.5", "1e99", "ten", ""])
def test_a_thaw_timeout_out_of_range_is_refused(
    disk: ScratchFilesystem, server: FaultServer, seconds: str
) -> None:
    assert "--thaw-timeout" in refuse(disk, server, f"--thaw-timeout={seconds}").errors


def test_a_thaw_timeout_below_10_ms_is_refused(disk: ScratchFilesystem, server: FaultServer) -> None:
    assert refuse(disk, server, "--thaw-timeout=0.001").error_code == "timeout-out-of-range"


@pytest.mark.parametrize("metadata", ["a-b=1", "1a=1", "=1", "novalue", "a=\u00e9"])
def test_metadata_that_the_service_would_refuse_is_refused(
    disk: ScratchFilesystem, server: FaultServer, metadata: str
) -> None:
    finished = refuse(disk, server, f"--metadata={metadata}")
    assert metadata not in finished.errors


def test_an_empty_list_of_blobs_is_refused(disk: ScratchFilesystem, server: FaultServer) -> None:
    assert refuse(disk, server, uris=["# nothing"]).error_code == "blob-list-empty"


def test_an_unwritable_report_file_is_refused(disk: ScratchFilesystem, server: FaultServer) -> None:
    assert refuse(disk, server, "--report=/no/such/directory/report").error_code == "report-unwritable"


@pytest.mark.parametrize("command", ["status", "thaw"])
def test_status_and_thaw_refuse_an_ordinary_user(command: str, disk: ScratchFilesystem) -> None:  # noqa: ARG001
    finished = run_command(command, "--json", before=ORDINARY_USER)
    assert finished.status in (1, 3)
    assert finished.error_code == "not-privileged"
