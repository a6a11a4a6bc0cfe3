"""A proxy that accepts connections and never opens a tunnel."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

WAYS = ("closes", "resets", "ssh", "tls-alert", "hangs")
"""What the proxy does after the head of a request. With `hangs`, it does nothing."""

_ANSWERS = {"ssh": b"SSH-2.0-OpenSSH_9.6\r\n", "tls-alert": b"\x15\x03\x01\x00\x02\x02\x46"}


@dataclass
class BrokenProxy:
    """The proxy. `connections` holds the head of the first request of each connection."""

    uri: str
    connections: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def broken_proxy(way: str) -> Iterator[BrokenProxy]:
    """Runs a proxy in a thread. `way` is one of `WAYS`."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = BrokenProxy(f"http://user:hunter2@127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                connection.settimeout(10)
                with contextlib.suppress(OSError):
                    proxy.connections.append(connection.recv(65536))
                    connection.sendall(_ANSWERS.get(way, b""))
                    if way == "hangs":
                        continue
                    if way == "resets":
                        # A close with this option sends RST.
                        linger = struct.pack("ii", 1, 0)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            # A close alone does not wake a thread that waits in `accept`.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
            for connection in kept:
                connection.close()
