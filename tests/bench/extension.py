"""The extension as the agent runs it: the time of enable, and of a whole job with four disks."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from pathlib import Path

from tests.bench.comparisons import Bench, say
from tests.bench.figures import Claim, Figure, print_table
from tests.bench.ways import PAUSE_SECONDS
from tests.support.azurite import CONTAINER, Azurite
from tests.support.extension import NAME, VERSION, Extension, built_package, unpack
from tests.support.host_service import Answer, HostService
from tests.support.isolation import Sandbox
from tests.support.protected_settings import object_str
from tests.support.rescue import RescueThaw

DISKS = 4
ENABLE_MS = 300.0
JOB_MS = 1000.0
# The time of the reference for such a job, on an idle VM with endpoints that answered at once.
REFERENCE_JOB_MS = 8600.0
LIMIT_SECONDS = 60.0

_WINDOW = re.compile(r"window ([0-9.]+) ms")


def jobs(bench: Bench) -> list[Claim]:
    """Measures jobs of four disks on Azurite, by the guest: the host answers PreSnapshot with 404."""
    say(f"the extension, {DISKS} disks")
    figures = {name: Figure() for name in ("enable", "job", "window", "worker peak MiB")}
    filesystems = bench.filesystems[:DISKS]
    with contextlib.ExitStack() as stack:
        base_directory = bench.directory / "waagent" / f"{NAME}-{VERSION}"
        stack.callback(shutil.rmtree, base_directory.parent)
        unpack(built_package(), base_directory)
        azurite = stack.enter_context(Azurite(bench.directory))
        azurite.warm_up()
        host = stack.enter_context(HostService())
        host.script("presnapshot", Answer(404))
        sandbox = stack.enter_context(Sandbox(filesystems))
        sandbox.forward(80, host="168.63.129.16", outside_port=host.port)
        sandbox.forward(int(azurite.endpoint.rpartition(":")[2]))
        extension = Extension(sandbox, base_directory)
        # install makes the bytecode, as on a VM.
        extension.run("install")
        for number in range(bench.repetitions + 1):
            paths = [filesystem.mount_point for filesystem in filesystems]
            with RescueThaw(paths, LIMIT_SECONDS):
                measured = _job(extension, azurite, number)
            time.sleep(PAUSE_SECONDS)
            # The first job warms up and is not counted.
            if number:
                for figure, value in zip(figures.values(), measured):
                    figure.add(value)
    bench.raw["extension"] = {name: figure.values for name, figure in figures.items()}
    print_table(
        f"The extension: a job of {DISKS} disks on Azurite over HTTP, ms",
        ["enable", "settings to final status", "window", "worker's peak, MiB"],
        [list(figures.values())],
    )
    print(f"  the reference, by its contract: {REFERENCE_JOB_MS:.0f} ms from settings to final status")
    return [
        Claim(
            "enable returns, the agent's shell and our start included",
            figures["enable"].median,
            ENABLE_MS,
            "ms",
        ),
        Claim("settings to final status, 4 disks on Azurite", figures["job"].median, JOB_MS, "ms"),
    ]


def _job(extension: Extension, azurite: Azurite, number: int) -> tuple[float, float, float, float]:
    """Runs one job. Returns the times of enable, job and window (ms), and the worker's peak memory (MiB)."""
    names = [f"{number}-{disk}.vhd" for disk in range(DISKS)]
    for name in names:
        azurite.create_page_blob(name)
    for name in (f"{number}-status", f"{number}-logs"):
        azurite.service.get_blob_client(CONTAINER, name).upload_blob(b"")
    public = {
        "commandToExecute": "snapshot",
        "taskId": f"bench-{number}",
        "vmType": "microsoft.compute/virtualmachines",
        "objectStr": object_str({"backupMetadata": [], "snapshotTaskToken": "t"}),
        "customSettings": json.dumps({"takeSnapshotFrom": "firstHostThenGuest", "isManagedVm": True}),
    }
    protected = {
        "objectStr": object_str({"blobSASUri": [azurite.sas_uri(name) for name in names]}),
        "statusBlobUri": azurite.sas_uri(f"{number}-status"),
        "logsBlobUri": azurite.sas_uri(f"{number}-logs"),
    }
    begun = time.monotonic()
    extension.enable(number, public, protected)
    enabled = time.monotonic()
    peak_kib = 0
    while extension.status(number)["code"] == "4":
        peak_kib = max(peak_kib, *map(_peak_kib, extension.sandbox.process_ids()), 0)
        if time.monotonic() - begun > LIMIT_SECONDS:
            raise TimeoutError("the job has no final status")
        time.sleep(0.005)
    ended = time.monotonic()
    extension.finish()
    if extension.status(number)["code"] != "1":
        raise RuntimeError(f"the job failed: {extension.log()}")
    window_ms = float(_WINDOW.findall(extension.log())[-1])
    return (enabled - begun) * 1000, (ended - begun) * 1000, window_ms, peak_kib / 1024


def _peak_kib(pid: int) -> int:
    """Returns a process's VmHWM, or 0 if it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
