"""The sandbox for the extension's handler: what it must block, and what must work in it."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ArmRescue
from tests.support.azurite import Azurite
from tests.support.command import COMMAND, snapshot_arguments
from tests.support.filesystems import REPOSITORY, ScratchFilesystems
from tests.support.freezing import is_frozen
from tests.support.isolation import AZURE_CONFIGURATION, Sandbox, SandboxError
from tests.support.processes import kill, run_bounded

# Stops if the root is the filesystem whose device number it is given.
FREEZE_ROOT = """
import fcntl, os, sys
assert os.stat("/").st_dev != int(sys.argv[1])
try:
    fcntl.ioctl(os.open("/", os.O_RDONLY), 0xC0045877, 0)
except OSError as error:
    print(error.strerror)
"""

FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


OWNER = """
import signal
from tests.support.isolation import Sandbox
sandbox = Sandbox()
sandbox.popen(["sleep", "50"])
while not (inside := sandbox.process_ids()):
    pass
print(sandbox.holder_pid, *inside, flush=True)
signal.pause()
"""


class _Greeting(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        """Discards the log line."""


def test_a_file_written_inside_does_not_reach_the_machine(root: None) -> None:  # noqa: ARG001
    places = [Path("/etc/azure"), Path("/var/lib/waagent"), Path("/var/log/azure"), Path("/run/vmsnapshot")]
    before = [place.exists() for place in places]
    with Sandbox() as sandbox:
        for place in places:
            finished = sandbox.run("sh", "-c", f"mkdir -p {place} && echo it > {place}/sandboxed")
            assert finished.status == 0, finished.errors
            assert sandbox.path(place / "sandboxed").read_text() == "it\n"
        assert sandbox.run("rm", "/etc/passwd").status == 0
    assert [place.exists() for place in places] == before
    assert not any((place / "sandboxed").exists() for place in places)
    assert Path("/etc/passwd").exists()


def test_a_sandbox_starts_without_the_machines_azure_files_and_skips_the_root(
    root: None,  # noqa: ARG001
) -> None:
    with Sandbox() as sandbox:
        assert [path.name for path in sandbox.path("/etc/azure").iterdir()] == [AZURE_CONFIGURATION.name]
        assert "MountsToSkip = /\n" in sandbox.path(AZURE_CONFIGURATION).read_text()
        assert not sandbox.path("/var/lib/waagent").exists()
        assert not sandbox.path("/var/log/azure").exists()


def test_the_root_inside_cannot_be_frozen(root: None) -> None:  # noqa: ARG001
    with Sandbox() as sandbox:
        finished = sandbox.run(sys.executable, "-I", "-c", FREEZE_ROOT, str(Path("/").stat().st_dev))
    assert finished.output == "Operation not supported\n", finished.errors


def test_only_the_named_filesystems_are_inside_and_others_stay_unmountable(
    scratch: ScratchFilesystems,
) -> None:
    named, other = scratch.make_on_loop("named"), scratch.make_on_loop("other")
    with Sandbox([named]) as sandbox:
        plan = sandbox.run(COMMAND, "plan", "--json").document
        assert [entry["mount_point"] for entry in plan["filesystems"]] == [str(named.mount_point)]
        # A copy of the mount inside would keep the device busy.
        run_bounded(["umount", other.mount_point])
        run_bounded(["losetup", "--detach", other.device])
        assert not Path(f"/sys/block/{other.device.name}/loop/backing_file").exists()


def test_a_sandbox_is_refused_when_the_plan_differs_from_the_filesystems_of_the_test(
    scratch: ScratchFilesystems,
) -> None:
    first, second = scratch.make_on_loop("first"), scratch.make_on_loop("second")
    with Sandbox([first]) as sandbox:
        assert sandbox.run("mount", second.device, "/mnt").status == 0
        with pytest.raises(SandboxError, match="/mnt"):
            sandbox.assert_safe()
    # A read-only filesystem is not frozen, so a test that relies on its freeze would test nothing.
    run_bounded(["mount", "-o", "remount,ro", second.mount_point])
    with pytest.raises(SandboxError, match="would be frozen"):
        Sandbox([first, second])


def test_a_server_outside_answers_at_the_addresses_of_azure_in_every_sandbox(root: None) -> None:  # noqa: ARG001
    for _ in range(2):
        with Sandbox() as sandbox, sandbox.listen("168.63.129.16", 80) as listener:
            server = http.server.HTTPServer(("", 0), _Greeting, bind_and_activate=False)
            server.socket.close()
            server.socket = listener
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                finished = sandbox.run(sys.executable, "-I", "-c", FETCH, "http://168.63.129.16/")
            finally:
                server.shutdown()
                thread.join()
        assert finished.output == "hello\n", finished.errors


def test_the_network_of_the_machine_is_unreachable_from_inside(root: None) -> None:  # noqa: ARG001
    with Sandbox() as sandbox:
        devices = sandbox.run("cat", "/proc/net/dev").output.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_the_error_for_an_address_in_use_names_it(root: None) -> None:  # noqa: ARG001
    with (
        Sandbox() as sandbox,
        sandbox.listen("127.0.0.1", 80),
        pytest.raises(SandboxError, match=r"127\.0\.0\.1:80"),
    ):
        sandbox.listen("127.0.0.1", 80)


def test_a_snapshot_run_inside_freezes_and_thaws_and_reaches_a_forwarded_service(
    scratch: ScratchFilesystems, rescue: ArmRescue, azurite_http: Azurite
) -> None:
    disk = scratch.make_on_loop("disk")
    rescue([disk.mount_point])
    azurite_http.create_page_blob("isolation")
    with Sandbox([disk]) as sandbox:
        sandbox.forward(int(azurite_http.endpoint.rpartition(":")[2]))
        uri = azurite_http.sas_uri("isolation")
        arguments = snapshot_arguments([disk.mount_point])
        finished = sandbox.run(COMMAND, *arguments, standard_input=uri)
        assert finished.status == 0, finished.output + finished.errors
        assert finished.document["consistent"] is True
        assert sandbox.wait_until_empty(limit_seconds=3.0)
    assert len(azurite_http.snapshots("isolation")) == 1
    assert not is_frozen(disk.mount_point)


def test_a_process_that_is_left_behind_is_ended_and_reported(root: None) -> None:  # noqa: ARG001
    sandbox = Sandbox()
    assert sandbox.run("sh", "-c", "setsid sleep 50 </dev/null >/dev/null 2>&1 &").status == 0
    assert len(sandbox.process_ids()) == 1
    with pytest.raises(SandboxError, match=r"left running in the sandbox: \d+ sleep 50"):
        sandbox.close()
    assert sandbox.process_ids() == []


def test_a_program_is_killed_at_its_limit(root: None) -> None:  # noqa: ARG001
    with Sandbox() as sandbox:
        with pytest.raises(SandboxError, match="did not end within"):
            sandbox.run("sleep", "50", limit_seconds=0.2)
        assert sandbox.wait_until_empty(limit_seconds=3.0)


def test_a_sandbox_ends_with_the_process_that_made_it(root: None) -> None:  # noqa: ARG001
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=REPOSITORY, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert owner.stdout is not None
        inside = [Path("/proc") / pid for pid in owner.stdout.readline().decode().split()]
        assert len(inside) == 2
        assert all(process.exists() for process in inside)
    finally:
        kill(owner)
    until = time.monotonic() + 10.0
    while any(process.exists() for process in inside):
        assert time.monotonic() < until, "the sandbox outlived its owner"
        time.sleep(0.01)
