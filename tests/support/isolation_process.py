"""The processes behind `tests.support.isolation`. They need only the standard library.

``python -I -S isolation_process.py hold CONTROL_FD`` is the first process of a sandbox's
namespaces, which ``unshare`` has made. It builds the sandbox's root, reports that, and then hands
out listening sockets of the sandbox's network. When its control socket closes, it ends, and the
kernel ends every other process inside.

``python -I -S isolation_process.py relay LISTENING_FD PORT`` runs outside. It forwards connections
from inside to a port of the machine's 127.0.0.1.
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
# A private endpoint: a service that is neither on loopback nor the platform, as the blobs of a VM are.
PRIVATE_ADDRESS = "10.9.8.7"

# Directories that every system has and that are mostly empty. The root is built on one of them: the mount on
# it exists only in the sandbox's mount namespace, and vanishes with the old root.
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/tmp")  # noqa: S108 (nothing is created in /tmp)

# Files of the machine that the sandbox starts without.
_ABSENT = ("/etc/azure", "/etc/waagent.conf", "/var/lib/waagent", "/var/log/azure")


def hold(control: socket.socket) -> None:
    """Builds the sandbox, reports "ready" with this process's id outside, and serves until EOF."""
    # /proc is still the machine's.
    outside_pid = int(Path("/proc/self").readlink().name)
    wanted = json.loads(control.recv(1 << 16))
    build_root([Path(path) for path in wanted["lower"]], [Path(path) for path in wanted["mount_points"]])
    start_network()
    # An orphan in here becomes a child of this process: let the kernel reap it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(json.dumps({"ready": outside_pid}).encode())
    while True:
        command = control.recv(1 << 16)
        if not command:
            return
        listen(control, json.loads(command))


def build_root(lower: list[Path], mount_points: list[Path]) -> None:
    """Makes an overlay over the machine's files the root: every write goes to memory, and no disk is mounted.

    So no program in here can freeze the machine's ``/``: FIFREEZE does not support overlay, and no
    path in this namespace leads to the filesystem below. Only ``mount_points`` are mounted as well.
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
    # A tmpfs, as /run is on the systems for which the handler is made.
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "run", root / "run")
    # The files that were written, for tests that search all of them.
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
    """Returns a directory on which a mount hides none of the paths that are needed."""
    for path in map(Path, _STAGES):
        if path.is_dir() and not any(path in (other, *other.parents) for other in needed):
            return path
    raise RuntimeError(f"there is no directory to build a root in: tried {', '.join(_STAGES)}")


def start_network() -> None:
    """Brings up the loopback device with the addresses of Azure's host and of a private endpoint."""
    run("ip", "link", "set", "lo", "up")
    for address in (*AZURE_ADDRESSES, PRIVATE_ADDRESS):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")


def listen(control: socket.socket, command: dict[str, Any]) -> None:
    """Sends back a listening socket, which belongs to this network wherever it is used."""
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
    """Runs a command. Raises an error with its output if it fails."""
    finished = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {finished.stderr.strip()}")


async def relay(listener: socket.socket, port: int) -> None:
    """Forwards bytes in both directions for every connection, until it is killed."""

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
    """Runs one of the two processes."""
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
