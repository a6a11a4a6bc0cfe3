"""A user makes very many mounts in a user namespace. Plans stay quick and small, and can be interrupted.

What such a namespace alone still shows is frozen all the same, and what is not read of it is named.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import vmsnapshot
from tests.conftest import ArmRescue, StartFaultServer
from tests.support import processes
from tests.support.command import COMMAND, run_command, take_snapshot
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems

# Stacks mounts, each with a mount point of as many directories as asked for. The interpreter may lie where an
# ordinary user may not look, so it is root that starts it.
CROWD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), what)

def mount(source, target, kind, flags):
    check(libc.mount(source, target, kind, flags, None), target)

os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
# Otherwise /proc/self belongs to root.
PR_SET_DUMPABLE = 4
check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
check(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER), "unshare")
for name, text in ("setgroups", "deny"), ("uid_map", "0 65534 1"), ("gid_map", "0 65534 1"):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
mount(None, b"/", None, MS_REC | MS_PRIVATE)
mount(b"crowd", b"/mnt", b"tmpfs", 0)
os.chdir("/mnt")
for _ in range(int(sys.argv[2])):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
os.mkdir("stack")
for _ in range(int(sys.argv[1])):
    mount(b"stack", b"stack", None, 4096)
print("crowded", flush=True)
sys.stdin.read()
"""

# Prints the peak memory of a plan in KiB. A process that pytest starts itself begins with the peak of pytest.
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.argv[1], "plan"], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

STACKED = 10_000
# Their table has 24 MiB: more than is read of a table of another user namespace.
STACKED_DEEP, DEPTH = 8_000, 15

# An idle machine takes a tenth of a second. Before, it took more than 13 s.
PLAN_LIMIT_SECONDS = 12.0
PEAK_LIMIT_KIB = 64 * 1024


@contextlib.contextmanager
def user_namespace(stacked: int, depth: int = 0) -> Iterator[int]:
    """Runs `CROWD` as an ordinary user in a user namespace. Yields the id of the process."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CROWD, str(stacked), str(depth)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"crowded\n":
            why = process.stderr.read().decode(errors="replace")
            if "'unshare'" in why:
                pytest.skip(f"an ordinary user may not make a user namespace: {why}")
            raise AssertionError(why)
        yield process.pid
    finally:
        processes.kill(process)


@pytest.mark.usefixtures("root")
@pytest.mark.timeout(240)
def test_plan_beside_ten_thousand_mounts_of_a_user_is_quick() -> None:
    with user_namespace(STACKED):
        began_at = time.monotonic()
        finished = run_command("plan", "--json", limit_seconds=100.0)
        assert time.monotonic() - began_at < PLAN_LIMIT_SECONDS
        assert finished.status == 0


@pytest.mark.usefixtures("root")
@pytest.mark.timeout(240)
def test_table_of_a_user_that_is_too_long_is_named_and_takes_no_memory() -> None:
    with user_namespace(STACKED_DEEP, DEPTH) as pid:
        output = processes.run_bounded([sys.executable, "-I", "-S", "-c", PEAK, COMMAND], limit_seconds=200.0)
        assert int(output) < PEAK_LIMIT_KIB
        assert f"/proc/{pid}/mountinfo" in [item.path for item in vmsnapshot.plan().unreadable_mounts]


@pytest.mark.timeout(120)
def test_filesystem_that_only_the_namespace_of_a_user_still_shows_is_frozen(
    disk: ScratchFilesystem, scratch: ScratchFilesystems, fault_server: StartFaultServer, rescue: ArmRescue
) -> None:
    server = fault_server()
    left = scratch.make_on_loop("left")
    rescue([left.mount_point, disk.mount_point])
    with user_namespace(1) as pid:
        # The rescue has it open.
        processes.run_bounded(["umount", "--lazy", left.mount_point])
        finished = take_snapshot([disk.mount_point, left.mount_point], [server.uri("disk")])
    report = finished.document
    assert (finished.status, report["consistency"]) == (0, "filesystem")
    frozen = {item["mount_point"]: item for item in report["filesystems"]}
    assert frozen[str(left.mount_point)]["outcome"] == "thawed"
    assert pid > 0
