"""The mounts change between the plan and the freeze, and during the window."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ArmRescue, StartFaultServer
from tests.support import freezing, processes
from tests.support.command import SnapshotRun
from tests.support.fault_server import Creates, FaultServer
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems, stop_after_an_error
from tests.support.writers import Writer


def unmount(filesystem: ScratchFilesystem) -> None:
    """Unmounts a filesystem, to mount it later."""
    processes.run_bounded(["umount", filesystem.mount_point])


def mount(filesystem: ScratchFilesystem) -> None:
    """Mounts a filesystem again."""
    processes.run_bounded(["mount", filesystem.device, filesystem.mount_point])


def report_of(scratch: ScratchFilesystems, server: FaultServer, **steps: str) -> Any:
    """Takes a snapshot of every scratch filesystem with the API, with some code between its steps."""
    program = f"""
import resource, subprocess, threading, vmsnapshot
def mount(device, path):
    subprocess.run(["mount", device, path], check=True)
def unmount(path):
    subprocess.run(["umount", path], check=True)
plan = vmsnapshot.plan(include=[{str(scratch.directory / "*")!r}])
{steps.get("after_plan", "")}
with vmsnapshot.prepare(plan, [{server.uri("disk")!r}], thaw_timeout=5.0) as session:
    {steps.get("after_prepare", "pass")}
    print(session.run().to_json(), flush=True)
"""
    return json.loads(processes.run_bounded([sys.executable, "-c", program], limit_seconds=40.0))


def outcomes(report: Any) -> dict[str, str]:
    """Returns the outcome of each filesystem by the name of its directory."""
    return {Path(item["mount_point"]).name: item["outcome"] for item in report["filesystems"]}


def call(function: str, *arguments: Path) -> str:
    """Returns the text of a call."""
    return f"{function}({', '.join(repr(str(argument)) for argument in arguments)})"


def test_what_was_unmounted_after_the_plan_is_dropped_and_what_was_mounted_is_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays, goes, comes = (scratch.make_on_loop(name) for name in ("stays", "goes", "comes"))
    rescue([stays.mount_point])
    unmount(comes)
    steps = f"{call('unmount', goes.mount_point)}; {call('mount', comes.device, comes.mount_point)}"
    report = report_of(scratch, fault_server(), after_plan=steps)
    assert outcomes(report) == {"stays": "thawed", "comes": "thawed", "goes": "unmounted"}
    assert (report["consistent"], report["freeze_doubt"]) == (True, None)


def test_what_was_mounted_after_the_preparation_is_frozen_in_the_right_order(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    lower = scratch.make_on_loop("lower", size_mib=512)
    upper = scratch.make_on_loop("upper", inside=lower)
    rescue([lower.mount_point])
    unmount(upper)
    later = call("mount", upper.device, upper.mount_point)
    report = report_of(scratch, fault_server(), after_prepare=later)
    assert outcomes(report) == {"upper": "thawed", "lower": "thawed"}
    assert [(Path(item["mount_point"]).name, item["level"]) for item in report["filesystems"]] == [
        ("upper", 0),
        ("lower", 1),
    ]
    assert (report["consistent"], report["freeze_doubt"]) == (True, None)
    assert report["watchdog"]["released"] is True


def test_what_is_mounted_during_the_window_makes_the_set_inconsistent_and_is_named(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    planned, later = scratch.make_on_loop("planned"), scratch.make_on_loop("later")
    unmount(later)
    server = fault_server(default=Creates(after_ms=1500))
    rescue([planned.mount_point])
    with SnapshotRun([scratch.directory / "*"], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        mount(later)
        with Writer(later.mount_point, interval_ms=2) as writer:
            writer.wait_until_writing()
            finished = run.finish()
    report = finished.document
    assert outcomes(report) == {"planned": "thawed", "later": "mounted-since"}
    assert (finished.status, report["consistency"]) == (1, "crash")
    assert report["freeze_doubt_code"] == "mounted-since"
    assert f"`{later.mount_point}`" in report["why"]
    assert not freezing.is_frozen(planned.mount_point)


def test_what_no_pattern_names_is_not_reported_when_it_is_mounted_during_the_window(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    planned, later = scratch.make_on_loop("planned"), scratch.make_on_loop("later")
    unmount(later)
    server = fault_server(default=Creates(after_ms=1000))
    rescue([planned.mount_point])
    with SnapshotRun([planned.mount_point], [server.uri("disk")]) as run:
        run.wait_until_open(server)
        mount(later)
        finished = run.finish()
    assert (finished.status, outcomes(finished.document)) == (0, {"planned": "thawed"})


def test_what_was_unmounted_and_is_mounted_again_in_the_window_makes_the_set_inconsistent(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays, returns = scratch.make_on_loop("stays"), scratch.make_on_loop("returns")
    rescue([stays.mount_point])
    in_the_window = (
        f"threading.Timer(0.7, lambda: {call('mount', returns.device, returns.mount_point)}).start()"
    )
    report = report_of(
        scratch,
        fault_server(default=Creates(after_ms=1500)),
        after_plan=call("unmount", returns.mount_point),
        after_prepare=in_the_window,
    )
    assert outcomes(report) == {"stays": "thawed", "returns": "mounted-since"}
    assert (report["consistency"], report["freeze_doubt_code"]) == ("crash", "mounted-since")


def test_a_filesystem_that_was_repaired_before_the_freeze_is_frozen(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays, repaired = scratch.make_on_loop("stays"), scratch.make_on_loop("repaired")
    rescue([stays.mount_point])
    stop_after_an_error(repaired)
    repair = "; ".join(
        (
            call("unmount", repaired.mount_point),
            f"subprocess.run(['e2fsck', '-fy', {str(repaired.device)!r}], stdout=subprocess.DEVNULL)",
            call("mount", repaired.device, repaired.mount_point),
        )
    )
    report = report_of(scratch, fault_server(), after_prepare=repair)
    assert outcomes(report) == {"stays": "thawed", "repaired": "thawed"}
    assert report["consistent"] is True


def test_mounts_that_cannot_be_read_after_the_thaw_make_the_set_inconsistent(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    planned = scratch.make_on_loop("planned")
    rescue([planned.mount_point])
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))"
    report = report_of(
        scratch,
        fault_server(default=Creates(after_ms=1500)),
        after_prepare=f"threading.Timer(0.7, lambda: {limit}).start()",
    )
    assert outcomes(report) == {"planned": "thawed"}
    assert (report["consistency"], report["freeze_doubt_code"]) == ("crash", "mounts-unreadable")
    assert "too many open files" in report["why"]


def test_an_unmounted_filesystem_whose_device_does_not_answer_is_not_called_unmounted_and_delays_little(
    scratch: ScratchFilesystems, rescue: ArmRescue, fault_server: StartFaultServer
) -> None:
    stays = scratch.make_on_loop("stays")
    lower = scratch.make_on_loop("lower", "xfs", size_mib=512)
    goes = scratch.make_on_loop("goes", inside=lower)
    rescue([stays.mount_point, lower.mount_point], after_seconds=20.0)
    program = f"""
import os, pathlib, subprocess, sys, time, vmsnapshot
from tests.support import freezing
device, image, lower = {str(goes.device)!r}, {str(goes.image)!r}, pathlib.Path({str(lower.mount_point)!r})
plan = vmsnapshot.plan(include=[{str(stays.mount_point)!r}, {str(scratch.directory / "goe*")!r}])
subprocess.run(["umount", {str(goes.mount_point)!r}], check=True)
subprocess.run(["losetup", "--detach", device], check=True)
subprocess.run(["losetup", "--partscan", device, image], check=True)
freezing.freeze(lower)
# The kernel writes out the pages of a device before it reads the partitions, and locks its opens meanwhile.
with open(device, "r+b", buffering=0) as pages:
    content = pages.read(4096)
    pages.seek(0)
    pages.write(content)
    reading = subprocess.Popen(["blockdev", "--rereadpt", device])
    time.sleep(0.5)
    assert reading.poll() is None
    started = time.monotonic()
    try:
        with vmsnapshot.prepare(plan, [{fault_server().uri("disk")!r}], thaw_timeout=5.0) as session:
            report = session.run().to_json()
        took = time.monotonic() - started
    finally:
        freezing.thaw(lower)
        reading.wait(10)
# The teardown unmounts it first, and then what it lies on.
subprocess.run(["mount", device, {str(goes.mount_point)!r}], check=True)
assert took < 6.0, took
print(report, flush=True)
"""
    report = json.loads(processes.run_bounded([sys.executable, "-c", program], limit_seconds=40.0))
    assert outcomes(report) == {"stays": "thawed", "goes": "freeze-would-wait"}
