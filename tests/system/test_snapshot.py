"""The main job through the command: real snapshots on Azurite, what is printed, and what never is."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.conftest import ArmRescue
from tests.support.azurite import Azurite
from tests.support.certificates import Certificates
from tests.support.command import SnapshotRun, read_status, run_command, run_of, take_snapshot
from tests.support.fault_server import Creates, FaultServer, Refuses, Resets
from tests.support.filesystems import REPOSITORY, ScratchFilesystem, ScratchFilesystems

StartFaultServer = Callable[..., FaultServer]


@pytest.fixture
def disk(scratch: ScratchFilesystems, rescue: ArmRescue) -> ScratchFilesystem:
    """An ext4 with the rescue armed."""
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    return filesystem


# Azurite.


def test_snapshots_exist_on_azurite_with_their_metadata(
    disk: ScratchFilesystem, azurite_http: Azurite
) -> None:
    names = [f"system-{number}" for number in range(4)]
    for name in names:
        azurite_http.create_page_blob(name, content=name.encode())
    uris = [azurite_http.sas_uri(name) for name in names]
    finished = take_snapshot([disk.mount_point], uris, "--metadata=RunId=abc", "--metadata=Vm=web 1")
    assert finished.status == 0, finished
    report = finished.document
    assert (report["consistent"], report["consistency"], report["why"]) == (True, "filesystem", None)
    for name, blob in zip(names, report["blobs"]):
        assert (blob["outcome"], blob["http_status"], blob["attempts"]) == ("created", 201, 1)
        assert azurite_http.snapshots(name) == [blob["snapshot"]]
        assert azurite_http.read_snapshot(name, blob["snapshot"]).startswith(name.encode())
        assert azurite_http.snapshot_metadata(name, blob["snapshot"]) == {"RunId": "abc", "Vm": "web 1"}
        assert blob["snapshot_uri"] == f"{blob['uri']}?snapshot={blob['snapshot']}"


def test_snapshots_over_https_need_the_ca_file(disk: ScratchFilesystem, azurite_https: Azurite) -> None:
    assert azurite_https.certificates is not None
    azurite_https.create_page_blob("secure")
    uri = azurite_https.sas_uri("secure")
    refused = take_snapshot([disk.mount_point], [uri])
    assert (refused.status, refused.error_code) == (1, "tls-failed")
    assert "--ca-file" in refused.document["error"]["hint"]
    assert azurite_https.snapshots("secure") == []
    finished = take_snapshot([disk.mount_point], [uri], f"--ca-file={azurite_https.certificates.ca_file}")
    assert finished.status == 0, finished
    assert azurite_https.snapshots("secure") == [finished.document["blobs"][0]["snapshot"]]


def test_azurite_refuses_what_is_not_there(disk: ScratchFilesystem, azurite_http: Azurite) -> None:
    azurite_http.create_page_blob("there")
    uris = [azurite_http.sas_uri("there"), azurite_http.sas_uri("not-there")]
    finished = take_snapshot([disk.mount_point], uris)
    assert finished.status == 1
    there, not_there = finished.document["blobs"]
    assert there["outcome"] == "created"
    assert (not_there["outcome"], not_there["http_status"], not_there["error_code"]) == (
        "refused",
        404,
        "BlobNotFound",
    )
    assert (finished.document["consistency"], finished.document["all_thawed"]) == ("none", True)


# Through a proxy.


class ConnectProxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that knows CONNECT and nothing else, and keeps the heads of its requests."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ConnectHandler)
        self.heads: list[bytes] = []


class _ConnectHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        assert isinstance(self.server, ConnectProxy)
        self.server.heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        if method != b"CONNECT":
            self.wfile.write(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
            return
        host, port = target.decode().rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as upstream:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            pairs = {self.connection: upstream, upstream: self.connection}
            while True:
                for readable in select.select(list(pairs), [], [], 10)[0]:
                    data = readable.recv(65536)
                    if not data:
                        return
                    pairs[readable].sendall(data)


@pytest.fixture
def proxy() -> Iterator[ConnectProxy]:
    """A running `ConnectProxy`."""
    with ConnectProxy() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=5)


def test_snapshots_go_through_a_proxy_whose_password_is_never_shown(
    disk: ScratchFilesystem,
    fault_server: StartFaultServer,
    certificates: Certificates,
    proxy: ConnectProxy,
) -> None:
    server = fault_server(certificates)
    port = proxy.server_address[1]
    finished = run_command(
        "snapshot",
        "--json",
        "--blobs-from=-",
        f"--mount=mount={disk.mount_point}",
        f"--ca-file={certificates.ca_file}",
        f"--proxy=http://someone:tops3cret@127.0.0.1:{port}",
        standard_input=server.uri("disk"),
    )
    assert finished.status == 0, finished
    assert [head.split(b"\r\n")[0] for head in proxy.heads] == [
        f"CONNECT 127.0.0.1:{server.port} HTTP/1.1".encode()
    ]
    assert b"authorization: basic" in proxy.heads[0].lower()
    assert len(server.requests()) == 1
    assert "tops3cret" not in finished.output + finished.errors


# What is printed.

# README.md, "The report": every key and the types that its value may have.
NUMBER = (int, float)
TEXT_OR_NULL = (str, type(None))
NUMBER_OR_NULL = (int, float, type(None))
REPORT_KEYS: dict[str, Any] = {
    "schema_version": int,
    "run_id": str,
    "started_at": str,
    "consistent": bool,
    "consistency": str,
    "why": TEXT_OR_NULL,
    "freeze_doubt": TEXT_OR_NULL,
    "freeze_doubt_code": TEXT_OR_NULL,
    "all_thawed": bool,
    "window_ms": NUMBER_OR_NULL,
    "thaw_timeout_ms": NUMBER,
    "mode": dict,
    "filesystems": list,
    "blobs": list,
    "host_call": (dict, type(None)),
    "watchdog": dict,
    "timeline": list,
}
PART_KEYS: dict[str, dict[str, Any]] = {
    "mode": {"rcu_expedited": bool, "rcu_why_not": TEXT_OR_NULL, "parallel": bool},
    "filesystems": {
        "mount_point": str,
        "device": str,
        "filesystem_type": str,
        "level": int,
        "outcome": str,
        "frozen_at": TEXT_OR_NULL,
        "freeze_ms": NUMBER_OR_NULL,
        "thawed_at": TEXT_OR_NULL,
        "frozen_ms": NUMBER_OR_NULL,
        "thawed_by": TEXT_OR_NULL,
        "error": TEXT_OR_NULL,
    },
    "blobs": {
        "uri": str,
        "outcome": str,
        "snapshot": TEXT_OR_NULL,
        "snapshot_uri": TEXT_OR_NULL,
        "http_status": (int, type(None)),
        "error_code": TEXT_OR_NULL,
        "message": TEXT_OR_NULL,
        "retryable": bool,
        "attempts": int,
        "answer_ms": NUMBER_OR_NULL,
    },
    "watchdog": {
        "pid": int,
        "fired": TEXT_OR_NULL,
        "released": bool,
        "own_control_group": bool,
        "peak_memory_kib": (int, type(None)),
    },
    "timeline": {"at_ms": NUMBER, "event": str, "subject": TEXT_OR_NULL, "detail": TEXT_OR_NULL},
}


def assert_keys(value: dict[str, Any], keys: dict[str, Any]) -> None:
    assert set(value) == set(keys)
    for key, types in keys.items():
        assert isinstance(value[key], types), key


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_report_has_every_documented_key_and_no_other(
    disk: ScratchFilesystem, fault_server: StartFaultServer, tmp_path: Path, is_refused: bool
) -> None:
    server = fault_server()
    server.script("disk", Refuses(404, "BlobNotFound") if is_refused else Creates())
    path = tmp_path / "report"
    finished = take_snapshot([disk.mount_point], [server.uri("disk")], f"--report={path}")
    assert finished.status == int(is_refused)
    assert path.read_text() == finished.output
    report = finished.document
    assert_keys(report, REPORT_KEYS)
    for name, keys in PART_KEYS.items():
        parts = report[name] if isinstance(report[name], list) else [report[name]]
        assert parts
        for part in parts:
            assert_keys(part, keys)
    readme = (REPOSITORY / "README.md").read_text()
    documented = set(
        re.findall(r"`(\w+)`", readme.partition("### The report")[2].partition("### The plan")[0])
    )
    assert {*REPORT_KEYS, *(key for keys in PART_KEYS.values() for key in keys)} <= documented


def test_the_status_of_a_run_at_work_has_every_documented_key(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server(default=Creates(after_ms=800))
    with SnapshotRun([disk.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        told = run_command("status", "--json")
        assert run.finish().status == 0
    assert told.status == 3
    status = told.document
    assert_keys(status, {"frozen": list, "runs": list, "rcu_expedited": dict})
    keys = ("mount_point", "device", "run_id", "since", "state")
    assert_keys(status["frozen"][0], dict.fromkeys(keys, str))
    (at_work,) = status["runs"]
    assert_keys(
        at_work,
        {
            "run_id": str,
            "started_at": str,
            "pid": int,
            "alive": bool,
            "watchdog_pid": int,
            "watchdog_alive": bool,
            "fired": TEXT_OR_NULL,
            "finished": bool,
            "filesystems": list,
        },
    )
    assert (at_work["alive"], at_work["watchdog_alive"], at_work["finished"]) == (True, True, False)
    assert_keys(status["rcu_expedited"], {"value": (int, type(None)), "held_by": TEXT_OR_NULL})
    assert run_command("status", "--json").document["frozen"] == []


def test_words_for_people_say_the_same(disk: ScratchFilesystem, fault_server: StartFaultServer) -> None:
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


# What is never printed.


def test_no_secret_is_shown_anywhere(disk: ScratchFilesystem, fault_server: StartFaultServer) -> None:
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
    assert "vmsnapshot-watchdog" in seen["arguments of the watchdog"].decode()
    for place, content in seen.items():
        for secret in secrets:
            assert secret.encode() not in content, place
    heads = [request.head for request in server.requests()]
    assert all(b"c2lnbmF0dXJl" in head and b"metas3cret" in head for head in heads)


def test_uris_on_the_command_line_work_and_are_warned_of(
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


# Modes.


def test_rcu_is_left_alone_when_told_so(disk: ScratchFilesystem, fault_server: StartFaultServer) -> None:
    server = fault_server(default=Creates(after_ms=500))
    before = Path("/sys/kernel/rcu_expedited").read_text()
    with SnapshotRun([disk.mount_point], [server.uri("disk")], "--no-expedite-rcu") as run:
        run.wait_until_open(server)
        assert Path("/sys/kernel/rcu_expedited").read_text() == before
        finished = run.finish()
    assert finished.status == 0
    assert finished.document["mode"]["rcu_expedited"] is False
    assert finished.document["mode"]["rcu_why_not"]


def test_only_one_request_a_blob_is_sent_and_nothing_but_the_snapshot(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    uri = server.uri("disk")
    assert take_snapshot([disk.mount_point], [uri], "--metadata=Run=1").status == 0
    (request,) = server.requests()
    line, *headers = request.head.decode().strip().split("\r\n")
    assert line == f"PUT {uri.partition(str(server.port))[2]}&comp=snapshot HTTP/1.1"
    names = {header.partition(":")[0].lower() for header in headers}
    assert names == {"host", "content-length", "x-ms-meta-run"}
    assert request.body == b""
