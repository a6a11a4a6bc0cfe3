"""The processes behind `tests.support.isolation`; they need nothing but the standard library.

``python -I -S isolation_process.py hold CONTROL_FD`` is the first process of a sandbox's namespaces
(``unshare`` has made them). It builds the sandbox's own root, says so, and then hands out listening sockets
of the sandbox's network. When its control socket closes it ends, and the kernel ends all else in there.

``python -I -S isolation_process.py relay LISTENING_FD PORT`` runs outside, and carries connections that were
made inside to a port of the machine's own 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# WireServer (also the backup host) and the instance metadata service.
AZURE_ADDRESSES = ("168.63.129.16", "169.254.169.254")

# Directories that every system has and few keep anything in. One of them is where the root is built:
# something is mounted on it, in the sandbox's mount namespace only, and gone with the old root.
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/tmp")  # noqa: S108 (nothing is created in /tmp)

# What of the machine the sandbox does not even read: it starts without.
_ABSENT = ("/etc/azure", "/etc/waagent.conf", "/var/lib/waagent", "/var/log/azure")


def hold(control: socket.socket) -> None:
    """Builds the sandbox, reports "ready" with the number of this process outside, and serves until EOF."""
    # /proc is still the machine's.
    outside_pid = int(Path("/proc/self").readlink().name)
    wanted = json.loads(control.recv(1 << 16))
    build_root([Path(path) for path in wanted["lower"]], [Path(path) for path in wanted["mount_points"]])
    start_network()
    # What loses its parent in here becomes a child of this process: let the kernel collect it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(json.dumps({"ready": outside_pid}).encode())
    while True:
        command = control.recv(1 << 16)
        if not command:
            return
        listen(control, json.loads(command))


def build_root(lower: list[Path], mount_points: list[Path]) -> None:
    """Makes an overlay over the machine's files the root: every write ends in memory, no disk is mounted.

    So the machine's ``/`` cannot be frozen from in here, whatever the program under test believes: FIFREEZE
    knows no overlay, and nothing in this namespace leads to the filesystem below. ``mount_points`` are the
    only filesystems that come along.
    """
    stage = choose_stage([*lower, *mount_points])
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "sandbox", stage)
    root = stage / "root"
    root.mkdir()
    for number, directory in enumerate(lower):
        upper, work = stage / f"upper-{number}", stage / f"work-{number}"
        upper.mkdir()
        work.mkdir()
        target = root / directory.relative_to("/")
        options = f"lowerdir={directory},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", options, "sandbox", target)
    run("mount", "-t", "proc", "proc", root / "proc")
    run("mount", "--rbind", "/sys", root / "sys")
    run("mount", "--rbind", "/dev", root / "dev")
    # A tmpfs, as /run is on the systems that the handler is for.
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "run", root / "run")
    # What is written, for tests that look at all of it.
    for number in range(len(lower)):
        written = root / f"run/written-{number}"
        written.mkdir()
        run("mount", "--bind", stage / f"upper-{number}", written)
    for mount_point in mount_points:
        target = root / mount_point.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", mount_point, target)
    for path in _ABSENT:
        run("rm", "--recursive", "--force", "--one-file-system", root / path[1:])
    old = root / ".old"
    old.mkdir()
    run("pivot_root", root, old)
    os.chdir("/")
    run("umount", "--lazy", "/.old")
    Path("/.old").rmdir()


def choose_stage(needed: list[Path]) -> Path:
    """Returns a directory that hides nothing of what is needed when something is mounted on it."""
    for path in map(Path, _STAGES):
        if path.is_dir() and not any(path in (other, *other.parents) for other in needed):
            return path
    raise RuntimeError(f"there is no directory to build a root in: tried {', '.join(_STAGES)}")


def start_network() -> None:
    """Brings the loopback device up, with the addresses at which Azure's host answers."""
    run("ip", "link", "set", "lo", "up")
    for address in AZURE_ADDRESSES:
        run("ip", "address", "add", f"{address}/32", "dev", "lo")


def listen(control: socket.socket, command: dict[str, Any]) -> None:
    """Sends back a listening socket; it stays in this network wherever it is used."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((command["host"], command["port"]))
            listener.listen(128)
        except OSError as error:
            control.send(json.dumps({"error": str(error)}).encode())
            return
        socket.send_fds(control, [b"{}"], [listener.fileno()])


def run(*words: str | Path) -> None:
    """Runs a command; raises, with what it said, when it fails."""
    finished = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {finished.stderr.strip()}")


async def relay(listener: socket.socket, port: int) -> None:
    """Carries bytes both ways for every connection, until killed."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))
        for each in (writer, other_writer):
            each.close()

    server = await asyncio.start_server(carry, sock=listener)
    await server.serve_forever()


def main() -> None:
    """Runs one of the two."""
    descriptor = int(sys.argv[2])
    if sys.argv[1] == "hold":
        with socket.socket(fileno=descriptor) as control:
            try:
                hold(control)
            except Exception as error:
                control.send(json.dumps({"error": str(error)}).encode())
    else:
        asyncio.run(relay(socket.socket(fileno=descriptor), int(sys.argv[3])))


if __name__ == "__main__":
    main()
