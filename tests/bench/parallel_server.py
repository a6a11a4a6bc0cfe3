"""A blob service that takes a fixed time for each snapshot and serves all of them in parallel.

It runs as a script (``python -I -S parallel_server.py SERVICE_MS``), prints its port, and ends when
its standard input does. It has one thread and one epoll, parses nothing and sends a prepared
answer, because it shares two cores with the program that is measured: the fault server's asyncio
needs 5 ms for 64 requests.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
from collections import deque

ANSWER = (
    b'HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: "0x8D1"\r\n'
    b"Last-Modified: Sun, 22 Nov 2026 10:26:21 GMT\r\nDate: Sun, 22 Nov 2026 10:26:21 GMT\r\n"
    b"x-ms-version: 2018-03-28\r\nx-ms-request-id: 00000000-0000-0000-0000-000000000000\r\n"
    b"x-ms-snapshot: 2026-11-22T10:26:21.8190000Z\r\n\r\n"
)


def main() -> None:
    """Answers every request ``SERVICE_MS`` after its head was received."""
    service_seconds = float(sys.argv[1]) / 1e3
    gc.disable()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    poller.register(0, select.EPOLLIN)
    open_sockets: dict[int, socket.socket] = {}
    # All requests take equally long, so the oldest is due first.
    due: deque[tuple[float, int]] = deque()
    clock = time.monotonic
    os.write(1, f"{listener.getsockname()[1]}\n".encode())
    while True:
        # epoll rounds up to milliseconds, and one is two per cent of 50.
        wait = max(0.0, due[0][0] - clock()) if due else -1
        if due and wait < 0.002:
            select.select([], [], [], wait)
            events = poller.poll(0)
        else:
            events = poller.poll(wait - 0.001 if due else -1)
        now = clock()
        for descriptor, _ in events:
            if descriptor == listener.fileno():
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_sockets[accepted.fileno()] = accepted
                poller.register(accepted.fileno(), select.EPOLLIN)
            elif descriptor == 0:
                return
            else:
                try:
                    data = open_sockets[descriptor].recv(65536)
                except OSError:
                    data = b""
                if not data:
                    open_sockets.pop(descriptor).close()
                elif data.endswith(b"\r\n\r\n"):
                    due.append((now + service_seconds, descriptor))
        while due and due[0][0] <= clock():
            _, descriptor = due.popleft()
            if descriptor in open_sockets:
                try:
                    open_sockets[descriptor].send(ANSWER)
                except OSError:
                    open_sockets.pop(descriptor).close()


if __name__ == "__main__":
    main()
