"""Plans and runs while mounts change, and a table of mounts that no two reads agree about.

Nothing here can make the kernel write a table that cannot be parsed, or refuse root. Those cases are tested
on trees of files, in rust/engine/src/scan.
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
from tests.support.command import take_snapshot
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems

BIND_MOUNTS = 2000

# Four threads mount and unmount beside a table that is long enough for them to be seen in each read of it.
CHURN = f"""
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])

def mount(source, target, kind, flags):
    if libc.mount(source, target, kind, flags, None) != 0:
        raise OSError(ctypes.get_errno(), target)

mount(b"churn", b".", b"tmpfs", 0)
os.chdir(sys.argv[1])
os.mkdir("source")
for number in range({BIND_MOUNTS}):
    target = b"%d" % number
    os.mkdir(target)
    mount(b"source", target, None, 4096)

def churn(target):
    os.mkdir(target)
    while True:
        mount(b"source", target, None, 4096)
        libc.umount2(target, 0)

for number in range(4):
    threading.Thread(target=churn, args=(b"churn%d" % number,), daemon=True).start()
print("churning", flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def churning_namespace(scratch: ScratchFilesystems) -> Iterator[str]:
    """Runs `CHURN` in a mount namespace of its own. Yields the path of its table of mounts."""
    directory = scratch.directory / "churn"
    directory.mkdir()
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", CHURN, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"churning\n"
        yield f"/proc/{process.pid}/mountinfo"
    finally:
        processes.kill(process)


def mounted_only_there(filesystem: ScratchFilesystem) -> str:
    """Unmounts a filesystem that a namespace of its own still shows. Returns its device number."""
    number = filesystem.mount_point.stat().st_dev
    processes.run_bounded(["umount", filesystem.mount_point])
    return f"{number >> 8}:{number & 255}"


@pytest.mark.timeout(120)
def test_every_plan_names_a_filesystem_whose_table_changes_all_the_time(scratch: ScratchFilesystems) -> None:
    filesystem = scratch.make_on_loop("disk")
    with churning_namespace(scratch) as table:
        device = mounted_only_there(filesystem)
        start = time.monotonic()
        unsettled = 0
        # Whether two reads agree is a matter of chance: on a busy machine many do.
        while time.monotonic() < start + 3.0 or (not unsettled and time.monotonic() < start + 30.0):
            plan = vmsnapshot.plan()
            assert device in [planned.device for planned in plan.filesystems]
            unsettled += table in [item.path for item in plan.unreadable_mounts]
        assert unsettled


@pytest.mark.timeout(120)
def test_a_run_beside_a_table_that_cannot_be_read_is_crash_consistent_and_names_it(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    server = fault_server()
    with churning_namespace(scratch) as table:
        # Now and then two reads agree all the same, and the set is consistent.
        for _ in range(20):
            finished = take_snapshot([filesystem.mount_point], [server.uri("disk")])
            if finished.status != 0:
                break
    report = finished.document
    assert finished.status == 1
    assert (report["consistency"], report["freeze_doubt_code"]) == ("crash", "mounts-unreadable")
    assert table in [item["path"] for item in report["unreadable_mounts"]]
    assert f"`{table}`" in report["why"]
    assert [item["outcome"] for item in report["filesystems"]] == ["thawed"]
    assert [item["outcome"] for item in report["blobs"]] == ["created"]


def test_a_machine_at_rest_has_no_table_that_cannot_be_read(scratch: ScratchFilesystems) -> None:
    scratch.make_on_loop("disk")
    assert [item.path for item in vmsnapshot.machine().plan().unreadable_mounts] == []
