"""The packets between a run and its keeper. Each is one JSON object.

The run sends, in this order: ``{"applications": [...]}``, ``{"quiesce": {...}}`` and ``{"release": ...}``.
The engine sends the last one itself, right after the thaw. The keeper answers each with
``{"records": [...]}``, what it knows of each application by then. If the run closes its end or is gone, the
keeper releases what it holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from vmsnapshot.quiesce.failure import RunGone

# Above every packet: the kernel refuses what does not fit into its socket buffer.
PACKET_MAX_BYTES = 1 << 20


def send(end: socket.socket, packet: Mapping[str, object]) -> None:
    """Sends a packet. Raises `OSError` if the other end is closed."""
    end.send(json.dumps(packet).encode(), socket.MSG_NOSIGNAL)


def receive(end: socket.socket) -> dict[str, Any] | None:
    """Returns the packet that has arrived, or waits for one. `None` means that the other end is closed."""
    try:
        data = end.recv(PACKET_MAX_BYTES)
    except ConnectionResetError:
        # The other end was closed with a packet of ours unread. The kernel says so once, and before what the
        # other end had sent.
        data = end.recv(PACKET_MAX_BYTES)
    packet: dict[str, Any] | None = json.loads(data) if data else None
    return packet


class RunLink:
    """The keeper's end: the run's packets, and whether the run is still there."""

    def __init__(self, end: socket.socket, run_pid: int) -> None:
        self._end = end
        # The end of a child wakes every wait: it may leave its pipes open to others.
        self._child_ended, wake = socket.socketpair()
        self._child_ended.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._watched = [end.fileno()]
        # A child that the run forked keeps the socket open, so the process counts as well. Without a pidfd
        # (a kernel before 5.3), only the socket tells.
        with contextlib.suppress(OSError):
            self._watched.append(os.pidfd_open(run_pid))
        if os.getppid() != run_pid:
            raise RunGone

    def wait(self, descriptors: Iterable[int], deadline: float) -> bool:
        """Waits until one of the descriptors can be read or is closed, or until a child may have ended.
        Returns `False` at the deadline.

        Raises `RunGone`. The run sends nothing before it was answered, except that everything is to be
        released.
        """
        ready = _poll([*descriptors, self._child_ended.fileno(), *self._watched], deadline)
        if ready & set(self._watched):
            raise RunGone
        if self._child_ended.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._child_ended.recv(4096)
        return bool(ready)

    def receive(self, deadline: float | None) -> dict[str, Any] | None:
        """Returns the run's next packet, or `None` at the deadline. Raises `RunGone`."""
        ready = _poll(self._watched, deadline)
        if not ready:
            return None
        # What the run sent before its end still counts.
        packet = receive(self._end) if self._end.fileno() in ready else None
        if packet is None:
            raise RunGone
        return packet

    def send(self, packet: Mapping[str, object]) -> None:
        """Sends a packet. A run that is gone gets none."""
        with contextlib.suppress(OSError):
            send(self._end, packet)

    def forget(self) -> None:
        """Looks no more at whether the run is there. What is held is released whatever it does."""
        self._watched.clear()


def _poll(descriptors: Iterable[int], deadline: float | None) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return {descriptor for descriptor, _ in poll.poll(wait_ms)}
