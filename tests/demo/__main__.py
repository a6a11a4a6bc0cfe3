"""The demo makes disks, blobs and writers, takes a snapshot with the real command, and shows the result.

Everything is below one scratch directory and is removed afterwards, also after Ctrl-C. The demo
never freezes ``/``, because it names its own filesystems to the command.
"""

from __future__ import annotations

import contextlib
import datetime
import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.demo import extension
from tests.demo.interruptions import InterruptedBySignalError, Interruptions
from tests.support import processes
from tests.support.azurite import CONTAINER, Azurite
from tests.support.certificates import Certificates, make_certificates
from tests.support.extension import NAME, VERSION, built_package, unpack
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems, scratch_directory
from tests.support.host_service import Answer, HostService
from tests.support.isolation import Sandbox
from tests.support.rescue import RCU_EXPEDITED, RescueThaw
from tests.support.writers import Writer

VMSNAPSHOT = Path(sys.executable).with_name("vmsnapshot")
# How long the writers write before the snapshot, for comparison.
UNDISTURBED_SECONDS = 1.5
THAW_TIMEOUT_SECONDS = 5
# The limit on the command: start, connecting, syncing and the window.
COMMAND_LIMIT_SECONDS = 60.0
RESCUE_AFTER_SECONDS = 90.0
CONTENT_BYTES = 64 * 1024
METADATA = {"purpose": "demo"}

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Disk:
    """A filesystem, and the page blob that represents its disk in the cloud."""

    name: str
    filesystem: ScratchFilesystem
    content: bytes
    """The content of the blob at the time of the snapshot."""


class Findings:
    """The statements that were checked after the snapshot, and whether all hold."""

    def __init__(self) -> None:
        self.all_hold = True

    def note(self, statement: str, holds: bool) -> None:
        """Prints one statement and whether it holds."""
        print(f"  {'yes' if holds else 'NO '}  {statement}")
        self.all_hold = self.all_hold and holds


class Demo:
    """One demonstration. `run` makes everything through ``stack``, which removes it."""

    def __init__(self, stack: contextlib.ExitStack, interruptions: Interruptions) -> None:
        self.stack = stack
        self.interruptions = interruptions

    def run(self) -> bool:
        """Shows everything. Returns whether all statements hold."""
        directory = self.make(scratch_directory())
        filesystems = self.make(ScratchFilesystems(directory))

        heading(
            "Disks",
            """
            Three filesystems on loop devices. archive lies on a file of data, so its freeze writes to
            data: it has to be frozen before data, and thawed after it.
            """,
        )
        disks = self.make_disks(filesystems)
        mount_points = [disk.filesystem.mount_point for disk in disks]
        pattern = f"{glob.escape(str(directory))}/**"
        run_shown(["plan", "--include", pattern])

        heading(
            "Blob service",
            """
            Azurite, Microsoft's emulator of the blob service, over HTTPS with an authority of the demo's
            own; a page blob a disk, and for each a SAS URI as Azure Backup sends it. The demo runs in no
            cloud, so the blobs stand for the disks and hold something else.
            """,
        )
        with self.interruptions.held():
            certificates = make_certificates(directory)
            azurite = self.stack.enter_context(Azurite(directory, certificates))
        for disk in disks:
            azurite.create_page_blob(disk.name, CONTENT_BYTES, disk.content)
            print(f"  {azurite.sas_uri(disk.name).partition('?')[0]}")
        # The first calls after its start take several times as long, until its code is compiled.
        azurite.warm_up()

        heading(
            "Snapshot",
            """
            A writer on each filesystem writes 4 KiB and waits for the disk, every millisecond. Then the
            command: it gets the SAS URIs on its standard input, where no other user can see them.
            """,
        )
        # If all else fails, an independent process thaws. That has never happened.
        rescue = self.make(RescueThaw(mount_points, RESCUE_AFTER_SECONDS))
        writers = [self.make(Writer(mount_point)) for mount_point in mount_points]
        for writer in writers:
            writer.wait_until_writing()
        rcu_before = read_rcu()
        begin_ns = time.monotonic_ns()
        time.sleep(UNDISTURBED_SECONDS)
        report_file = directory / "report.json"
        arguments = ["snapshot", "--blobs-from", "-", "--ca-file", str(certificates.ca_file)]
        arguments += ["--mount", pattern, "--thaw-timeout", str(THAW_TIMEOUT_SECONDS)]
        arguments += [word for name, value in METADATA.items() for word in ("--metadata", f"{name}={value}")]
        arguments += ["--report", str(report_file)]
        start_ns = time.monotonic_ns()
        with self.interruptions.held():
            status = run_shown(arguments, "".join(f"{azurite.sas_uri(disk.name)}\n" for disk in disks))
        end_ns = time.monotonic_ns()
        print(f"exit status {status}")
        report = read_report(report_file)
        rescue.cancel()
        if "filesystems" not in report:
            print("\nno snapshot was taken: the command has said why")
            return False

        heading(
            "What the applications felt",
            """
            The longest that one write took, and its wait for the disk: in as long a time before the run;
            in the run, which also connects and writes dirty data back; and in its window. A write that
            was under way when the window began counts whole.
            """,
        )
        show_stalls(
            writers,
            {
                "before": (max(begin_ns, 2 * start_ns - end_ns), start_ns),
                "in the run": (start_ns, end_ns),
                "in the window": window_of(report),
            },
        )

        heading(
            "What the snapshots hold",
            """
            The blobs are overwritten, and the snapshots read back with azure-storage-blob: they must hold
            what the blobs held before.
            """,
        )
        findings = Findings()
        is_consistent = status == 0 and report["consistent"] is True
        findings.note("the run was consistent and complete (exit status 0)", is_consistent)
        outcomes = {blob["uri"].rpartition("/")[2]: blob for blob in report["blobs"]}
        for disk in disks:
            blob = azurite.service.get_blob_client(CONTAINER, disk.name)
            blob.upload_page(os.urandom(CONTENT_BYTES), offset=0, length=CONTENT_BYTES)
            snapshot = outcomes.get(disk.name, {}).get("snapshot")
            self.note_snapshot(findings, azurite, disk, snapshot)
        for writer in writers:
            writer.wait_until_writing()
        findings.note("every writer goes on writing", True)
        findings.note("nothing is frozen any more, says `vmsnapshot status`", not frozen_below(directory))
        findings.note("expedited RCU is set as it was before", read_rcu() == rcu_before)
        findings.note("the rescue, which thaws when all else fails, had nothing to do", rescue.thawed == [])
        self.show_extension(findings, directory, disks, azurite, certificates)
        return findings.all_hold

    def show_extension(
        self,
        findings: Findings,
        directory: Path,
        disks: list[Disk],
        azurite: Azurite,
        certificates: Certificates,
    ) -> None:
        """Does the same with the extension package."""
        heading(
            "The same, as Azure Backup does it",
            """
            The extension package, unpacked and enabled as the Azure Linux agent does: settings from the
            service, the SAS URIs encrypted for this VM's certificate, a host that leaves the snapshots to the
            guest, a status file for the agent, a status blob for Azure Backup. It runs in a sandbox, in which
            only the demo's filesystems can be frozen.
            """,
        )
        base_directory = directory / "waagent" / f"{NAME}-{VERSION}"
        unpack(built_package(), base_directory)
        host = self.make(HostService())
        host.script("presnapshot", Answer(404))
        rescue = self.make(RescueThaw([disk.filesystem.mount_point for disk in disks], RESCUE_AFTER_SECONDS))
        sandbox = self.make(Sandbox([disk.filesystem for disk in disks]))
        contents = {}
        for disk in disks:
            contents[disk.name] = os.urandom(CONTENT_BYTES)
            blob = azurite.service.get_blob_client(CONTAINER, disk.name)
            blob.upload_page(contents[disk.name], offset=0, length=CONTENT_BYTES)
        with self.interruptions.held():
            vm = extension.prepare(sandbox, base_directory, host.port, azurite)
            report = extension.run_job(vm, azurite, certificates, list(contents))
        print()
        findings.note(
            "the job was a success (code 1: consistent filesystems)",
            (report["status"], report["code"]) == ("success", "1"),
        )
        for item in report["snapshotInfo"] or []:
            name = item["blobUri"].rpartition("/")[2]
            snapshot = item["snapshotUri"].partition("?snapshot=")[2]
            holds = azurite.read_snapshot(name, snapshot) == contents[name]
            findings.note(f"the snapshot of {name} holds what the blob held", holds)
        findings.note("every disk has one", len(report["snapshotInfo"] or []) == len(disks))
        findings.note("and the rescue had nothing to do", rescue.cancel() == [])

    def make(self, context: contextlib.AbstractContextManager[_Made]) -> _Made:
        """Enters a context that ends with the demo. A signal is held until the stack has it."""
        with self.interruptions.held():
            return self.stack.enter_context(context)

    def make_disks(self, filesystems: ScratchFilesystems) -> list[Disk]:
        """Makes ext4, xfs, and btrfs on a file of the ext4."""
        data = filesystems.make_on_loop("data", "ext4", size_mib=512)
        database = filesystems.make_on_loop("database", "xfs")
        archive = filesystems.make_on_loop("archive", "btrfs", inside=data)
        return [
            Disk(filesystem.mount_point.name, filesystem, os.urandom(CONTENT_BYTES))
            for filesystem in (data, database, archive)
        ]

    def note_snapshot(self, findings: Findings, azurite: Azurite, disk: Disk, snapshot: str | None) -> None:
        """Compares one snapshot with the content of the blob and with the metadata."""
        if snapshot is None:
            findings.note(f"{disk.name} has a snapshot", False)
            return
        content = azurite.read_snapshot(disk.name, snapshot)
        findings.note(f"the snapshot of {disk.name} holds what the blob held", content == disk.content)
        metadata = azurite.snapshot_metadata(disk.name, snapshot)
        findings.note(f"and carries the metadata {metadata}", metadata == METADATA)


def main() -> int:
    """Runs the demo. Returns 0 if all statements hold."""
    if os.geteuid() != 0:
        print("the demo makes, mounts and freezes filesystems of its own, and only root can", file=sys.stderr)
        print("hint: sudo make demo", file=sys.stderr)
        return 1
    stack = contextlib.ExitStack()
    interruptions = Interruptions()
    status = 1
    # There are two, because a signal can arrive after the inner `finally` was entered and before its first
    # statement. Only one signal is raised, so none interrupts the outer `finally`.
    try:
        try:
            status = 0 if Demo(stack, interruptions).run() else 1
        finally:
            interruptions.end()
    except InterruptedBySignalError as interruption:
        print(f"\n{interruption}: taking everything down", flush=True)
        status = 128 + interruption.number
    finally:
        stack.close()
    print("everything the demo made is removed")
    return status


def heading(title: str, text: str) -> None:
    """Prints a heading and an introduction."""
    width = min(shutil.get_terminal_size((90, 24)).columns, 90)
    paragraph = textwrap.fill(" ".join(text.split()), width)
    print(f"\n=== {title} ===\n{paragraph}\n", flush=True)


def run_shown(arguments: list[str], given: str = "") -> int:
    """Prints a command and runs it. Returns its exit status."""
    print(command_text(arguments), flush=True)
    process = subprocess.Popen([VMSNAPSHOT, *arguments], stdin=subprocess.PIPE)
    try:
        process.communicate(given.encode(), timeout=COMMAND_LIMIT_SECONDS)
    except BaseException:
        # The watchdog thaws what the killed command froze.
        processes.kill(process)
        raise
    return process.returncode


def command_text(arguments: list[str]) -> str:
    """Returns a command as a user types it, with one option per line if it is long."""
    words = [shlex.quote(argument) for argument in arguments]
    line = " ".join(["$ vmsnapshot", *words])
    if len(line) <= 100:
        return line
    return "$ vmsnapshot " + " ".join(words).replace(" --", " \\\n    --")


def read_report(path: Path) -> dict[str, Any]:
    """Returns the report, or an empty one if the run failed before its window and has printed why."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return report


def window_of(report: dict[str, Any]) -> tuple[int, int] | None:
    """Returns the begin and the end of the window (CLOCK_MONOTONIC, ns), or None if nothing was frozen."""
    if report["window_ms"] is None:
        return None
    elapsed_ns = time.time_ns() - utc_ns(report["started_at"])
    begin_ns = time.monotonic_ns() - elapsed_ns
    return begin_ns, begin_ns + int(report["window_ms"] * 1e6)


def utc_ns(text: str) -> int:
    """Returns an instant of the report in nanoseconds since 1970."""
    instant = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int(instant.timestamp() * 1e9)


def show_stalls(writers: list[Writer], spans: dict[str, tuple[int, int] | None]) -> None:
    """Prints each writer's longest write in each span of time."""
    print(f"  {'writer on':<12}" + "".join(f"{title:>16}" for title in spans))
    for writer in writers:
        lengths = [longest_stall_text(writer, span) for span in spans.values()]
        print(f"  {writer.directory.name:<12}" + "".join(f"{length:>16}" for length in lengths))


def longest_stall_text(writer: Writer, span: tuple[int, int] | None) -> str:
    """Returns the longest write that was in progress at some time in ``span``."""
    if span is None:
        return "-"
    begin_ns, end_ns = span
    stalls = [stall for stall in writer.stalls(since_ns=begin_ns) if stall.start_ns < end_ns]
    return f"{max((stall.length_ms for stall in stalls), default=0.0):.2f} ms"


def frozen_below(directory: Path) -> bool:
    """Returns whether ``vmsnapshot status`` reports anything below ``directory`` as frozen."""
    # Exit status 3 means that something is frozen, perhaps by another run.
    answer = subprocess.run(
        [VMSNAPSHOT, "status", "--json"], stdout=subprocess.PIPE, timeout=COMMAND_LIMIT_SECONDS, check=False
    )
    frozen = json.loads(answer.stdout)["frozen"]
    return any(directory in Path(item["mount_point"]).parents for item in frozen)


def read_rcu() -> str | None:
    """Returns the machine's setting of expedited RCU, or None if it has none."""
    return RCU_EXPEDITED.read_text() if RCU_EXPEDITED.exists() else None


if __name__ == "__main__":
    sys.exit(main())
