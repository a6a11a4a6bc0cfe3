"""The support itself: where it fails, the tests that stand on it would say nothing."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import urllib.parse
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient

from tests.conftest import ArmRescue, StartFaultServer
from tests.support import freezing
from tests.support.azurite import Azurite
from tests.support.certificates import Certificates
from tests.support.fault_server import (
    AnswersByteByByte,
    Creates,
    NeverAnswers,
    Refuses,
    Resets,
)
from tests.support.filesystems import (
    REPOSITORY,
    ScratchFilesystems,
    loop_devices_below,
    scratch_directory,
)
from tests.support.mounts import NotAScratchFilesystemError, assert_not_root, mounts_below
from tests.support.rescue import RCU_EXPEDITED, RescueThaw, thaw_at_once
from tests.support.writers import Writer, writing


def put_snapshot(
    uri: str, *, ca_file: Path | None = None, headers: dict[str, str] | None = None, timeout: float = 10.0
) -> tuple[int, dict[str, str], bytes]:
    """The smallest snapshot request there is; returns status, headers (names in lower case) and body."""
    parts = urllib.parse.urlsplit(uri)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca_file)
        connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        target = f"{parts.path}?{parts.query}&comp=snapshot"
        connection.request("PUT", target, headers={"Content-Length": "0", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


# The guard.


@pytest.mark.parametrize("path", [Path("/"), Path("/proc/self"), REPOSITORY])
def test_guard_refuses_the_root_and_what_is_no_mount_point(path: Path) -> None:
    with pytest.raises(NotAScratchFilesystemError):
        assert_not_root(path)


def test_guard_refuses_a_bind_mount_of_the_root(scratch: ScratchFilesystems) -> None:
    bound = scratch.directory / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", scratch.directory, bound], check=True, timeout=10)
    with pytest.raises(NotAScratchFilesystemError):
        freezing.freeze(bound)


# Filesystems, freezing, and the rescue.


@pytest.mark.parametrize("filesystem_type", ["ext4", "xfs", "btrfs"])
def test_a_frozen_filesystem_holds_a_writer_until_the_rescue_thaws(
    scratch: ScratchFilesystems, rescue: ArmRescue, filesystem_type: str
) -> None:
    filesystem = scratch.make_on_loop("disk", filesystem_type)
    with Writer(filesystem.mount_point) as writer:
        writer.wait_until_writing()
        armed = rescue([filesystem.mount_point], after_seconds=1.0, linger_seconds=0.3)
        before_freeze_ns = time.monotonic_ns()
        freezing.freeze(filesystem.mount_point)
        assert freezing.is_frozen(filesystem.mount_point)
        assert armed.wait(limit_seconds=15.0) == [filesystem.mount_point]
        assert not freezing.is_frozen(filesystem.mount_point)
        writer.wait_until_writing()
        assert 500 < writer.longest_stall_ms(since_ns=before_freeze_ns) < 5000
        assert writer.stop()


def test_a_writer_that_is_held_shows_its_stall_while_it_lasts(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> None:
    filesystem = scratch.make_on_zram("disk")
    with Writer(filesystem.mount_point) as writer:
        writer.wait_until_writing()
        rescue([filesystem.mount_point])
        with freezing.frozen(filesystem.mount_point):
            time.sleep(0.3)
            assert writer.longest_stall_ms() > 200
        assert [stall.length_ms > 200 for stall in writer.stalls(longer_than_ms=200)] == [True]


def test_rescue_thaws_when_its_owner_was_killed(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point], after_seconds=20.0)
    program = """
        import os, signal, sys
        from pathlib import Path
        from tests.support import freezing
        from tests.support.rescue import RescueThaw
        rescue = RescueThaw([Path(sys.argv[1])], 1.0, linger_seconds=0.5)
        freezing.freeze(Path(sys.argv[1]))
        os.killpg(0, signal.SIGKILL)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), filesystem.mount_point],
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert owner.wait(timeout=20) == -signal.SIGKILL
    assert freezing.is_frozen(filesystem.mount_point)
    until = time.monotonic() + 10.0
    while freezing.is_frozen(filesystem.mount_point):
        assert time.monotonic() < until, "the rescue did not thaw"


def test_rescue_puts_rcu_expedited_back(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    before = RCU_EXPEDITED.read_text()
    armed = rescue([filesystem.mount_point], after_seconds=0.3, linger_seconds=0.3)
    RCU_EXPEDITED.write_text("1" if before.strip() == "0" else "0")
    assert armed.wait(limit_seconds=15.0) == []
    assert RCU_EXPEDITED.read_text() == before


def test_cancelled_rescue_thaws_nothing(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point], after_seconds=10.0)
    with RescueThaw([filesystem.mount_point], 0.5) as cancelled, freezing.frozen(filesystem.mount_point):
        assert cancelled.cancel() == []
        time.sleep(0.7)
        assert freezing.is_frozen(filesystem.mount_point)


def test_thaw_at_once_says_which_were_frozen(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    first, second = scratch.make_on_zram("first"), scratch.make_on_zram("second")
    rescue([first.mount_point, second.mount_point])
    freezing.freeze(second.mount_point)
    assert thaw_at_once([first.mount_point, second.mount_point]) == [second.mount_point]


def test_a_second_freeze_answers_busy(scratch: ScratchFilesystems, rescue: ArmRescue) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    with freezing.frozen(filesystem.mount_point):
        assert freezing.start_freeze(filesystem.mount_point).wait(timeout=5) == errno.EBUSY
    assert freezing.start_thaw(filesystem.mount_point).wait(timeout=5) == errno.EINVAL


def test_rescue_thaws_a_stack_whose_upper_freeze_hangs(
    scratch: ScratchFilesystems, rescue: ArmRescue
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    (upper.mount_point / "dirty").write_bytes(bytes(1024 * 1024))
    armed = rescue([upper.mount_point, lower.mount_point], after_seconds=1.0, linger_seconds=1.0)
    freezing.freeze(lower.mount_point)
    hanging = freezing.start_freeze(upper.mount_point)
    assert lower.mount_point in armed.wait(limit_seconds=20.0)
    assert hanging.wait(timeout=5) == 0
    assert not freezing.is_frozen(lower.mount_point)
    assert not freezing.is_frozen(upper.mount_point)


def test_everything_is_taken_down_also_when_frozen_and_written_to(root: None) -> None:  # noqa: ARG001
    with scratch_directory() as directory:
        scratch = ScratchFilesystems(directory)
        lower = scratch.make_on_loop("lower", size_mib=1024)
        middle = scratch.make_on_loop("middle", "xfs", size_mib=512, inside=lower)
        upper = scratch.make_on_loop("upper", "btrfs", inside=middle)
        memory = scratch.make_on_zram("memory")
        assert len(mounts_below(directory)) == 4
        assert len(loop_devices_below(directory)) == 3
        with writing([upper.mount_point, memory.mount_point]) as writers:
            freezing.freeze(upper.mount_point)
            freezing.freeze(memory.mount_point)
            for writer in writers:
                writer.tell_to_stop()
            # A stuck writer holds its filesystem busy until close() thaws it.
            scratch.close()
        assert mounts_below(directory) == []
        assert loop_devices_below(directory) == []
        assert not memory.device.exists()
    assert not directory.exists()


def test_the_next_run_takes_down_what_a_killed_one_left(root: None) -> None:  # noqa: ARG001
    program = """
        import os, signal
        from tests.support.filesystems import ScratchFilesystems, scratch_directory
        with scratch_directory() as directory:
            scratch = ScratchFilesystems(directory)
            lower = scratch.make_on_loop("lower", size_mib=256)
            scratch.make_on_loop("upper", inside=lower)
            scratch.make_on_zram("memory")
            print(directory, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=REPOSITORY,
        capture_output=True,
        timeout=30,
        check=False,
    )
    left = Path(killed.stdout.decode().strip())
    assert len(mounts_below(left)) == 3, killed.stderr.decode()
    with scratch_directory():
        assert mounts_below(left) == []
        assert loop_devices_below(left) == []
        assert not left.exists()


# Azurite.


def test_smallest_snapshot_request_works_on_azurite_over_http(azurite_http: Azurite) -> None:
    content = os.urandom(5 * 512)
    azurite_http.create_page_blob("http-disk", 8192, content)
    uri = azurite_http.sas_uri("http-disk")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)
    assert set(query) == {"sv", "sr", "sig", "st", "se", "sp"}
    assert query["sr"] == ["b"]
    status, headers, _ = put_snapshot(uri, headers={"x-ms-meta-RunId": "abc"})
    assert status == 201
    assert azurite_http.snapshots("http-disk") == [headers["x-ms-snapshot"]]
    snapshot = azurite_http.read_snapshot("http-disk", headers["x-ms-snapshot"])
    assert snapshot == content + bytes(8192 - len(content))
    metadata = azurite_http.snapshot_metadata("http-disk", headers["x-ms-snapshot"])
    assert metadata == {"RunId": "abc"}


def test_smallest_snapshot_request_works_on_azurite_over_https(azurite_https: Azurite) -> None:
    assert azurite_https.certificates is not None
    azurite_https.create_page_blob("https-disk")
    uri = azurite_https.sas_uri("https-disk").replace("127.0.0.1", "localhost")
    status, headers, _ = put_snapshot(uri, ca_file=azurite_https.certificates.ca_file)
    assert status == 201
    assert azurite_https.snapshots("https-disk") == [headers["x-ms-snapshot"]]


def test_azurite_refuses_a_sas_that_may_only_read(azurite_http: Azurite) -> None:
    azurite_http.create_page_blob("read-only-disk")
    status, headers, _ = put_snapshot(azurite_http.sas_uri("read-only-disk", "r"))
    assert (status, headers["x-ms-error-code"]) == (403, "AuthorizationPermissionMismatch")


def test_warm_up_leaves_nothing_behind(azurite_http: Azurite) -> None:
    azurite_http.warm_up(calls=5)
    assert azurite_http.snapshots("warm-up") == []


# The fault server.


def test_fault_server_serves_all_calls_in_parallel(fault_server: StartFaultServer) -> None:
    server = fault_server(default=Creates(after_ms=50))
    parts = urllib.parse.urlsplit(server.uri("disk"))
    request = f"PUT {parts.path}?{parts.query}&comp=snapshot HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(32)]
    start = time.monotonic()
    for connection in connections:
        connection.sendall(request)
    answers = [connection.recv(4096) for connection in connections]
    seconds = time.monotonic() - start
    for connection in connections:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 201 ") for answer in answers)
    # One after another would be 1.6 s.
    assert 0.05 <= seconds < 0.8
    assert [recorded.head for recorded in server.requests()] == [request] * 32
    assert len({recorded.connection for recorded in server.requests()}) == 32


def test_fault_server_plays_a_script_and_repeats_its_end(fault_server: StartFaultServer) -> None:
    server = fault_server()
    server.script("disk", Refuses(503, "ServerBusy"), Refuses(409, "SnapshotCountExceeded"))
    statuses = [put_snapshot(server.uri("disk"))[0] for _ in range(3)]
    assert statuses == [503, 409, 409]
    _, headers, body = put_snapshot(server.uri("disk"))
    assert headers["x-ms-error-code"] == "SnapshotCountExceeded"
    assert b"<Code>SnapshotCountExceeded</Code>" in body
    assert put_snapshot(server.uri("other"))[0] == 201


def test_fault_server_looks_like_the_service_to_the_sdk(fault_server: StartFaultServer) -> None:
    server = fault_server()
    with BlobClient.from_blob_url(server.uri("disk"), retry_total=0) as blob:
        assert str(blob.create_snapshot()["snapshot"]).endswith("Z")
        server.script("disk", Refuses(409, "SnapshotOperationRateExceeded"))
        with pytest.raises(HttpResponseError) as refused:
            blob.create_snapshot()
    assert refused.value.status_code == 409


@pytest.mark.parametrize("is_https", [False, True])
def test_fault_server_resets_instead_of_answering(
    fault_server: StartFaultServer, certificates: Certificates, is_https: bool
) -> None:
    server = fault_server(certificates if is_https else None)
    server.script("disk", Resets(), Creates())
    with pytest.raises(ConnectionResetError):
        put_snapshot(server.uri("disk"), ca_file=certificates.ca_file)
    assert put_snapshot(server.uri("disk"), ca_file=certificates.ca_file)[0] == 201


def test_fault_server_never_answers_or_answers_byte_by_byte(fault_server: StartFaultServer) -> None:
    server = fault_server()
    server.script("silent", NeverAnswers())
    server.script("slow", AnswersByteByByte(pause_ms=1.0))
    with pytest.raises(TimeoutError if sys.version_info >= (3, 10) else socket.timeout):
        put_snapshot(server.uri("silent"), timeout=0.3)
    assert put_snapshot(server.uri("slow"))[0] == 201


def test_fault_server_closes_idle_connections(fault_server: StartFaultServer) -> None:
    by_itself, when_told = fault_server(idle_close_seconds=0.2), fault_server()
    for server in (by_itself, when_told):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            until = time.monotonic() + 5
            while server.connections() < 1:
                assert time.monotonic() < until
            if server is when_told:
                server.close_idle_connections()
            assert connection.recv(1) == b""
