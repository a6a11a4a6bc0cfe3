"""An HTTP proxy that supports only CONNECT, for connections over TLS."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator

# How long a connection may take, and how long a tunnel may be idle.
LIMIT_SECONDS = 10.0


class ConnectProxy(socketserver.ThreadingTCPServer):
    """The proxy. It records the head of every request."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, *, wants_user_agent: bool = False, refusal: bytes | None = None) -> None:
        """`wants_user_agent` answers 403 without one. `refusal` is the answer to every CONNECT."""
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.wants_user_agent = wants_user_agent
        self.refusal = refusal
        self.heads: list[bytes] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"

    @property
    def request_lines(self) -> list[str]:
        """The first line of every request."""
        return [head.partition(b"\r\n")[0].decode() for head in self.heads]


@contextlib.contextmanager
def connect_proxy(*, wants_user_agent: bool = False, refusal: bytes | None = None) -> Iterator[ConnectProxy]:
    """Runs a `ConnectProxy` in a thread."""
    with ConnectProxy(wants_user_agent=wants_user_agent, refusal=refusal) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join(timeout=5)


class _Tunnel(socketserver.StreamRequestHandler):
    """Answers one CONNECT, and copies bytes both ways until one side closes its connection."""

    server: ConnectProxy

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        self.server.heads.append(head)
        method, target, _ = head.partition(b"\r\n")[0].decode().split(" ")
        if method != "CONNECT":
            self.wfile.write(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
            return
        refusal = self.server.refusal
        if self.server.wants_user_agent and b"\r\nuser-agent: vmsnapshot/" not in head.lower():
            refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        if refusal is not None:
            self.wfile.write(refusal)
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS) as upstream:
            self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            other_side = {self.connection: upstream, upstream: self.connection}
            while readable := select.select(list(other_side), [], [], LIMIT_SECONDS)[0]:
                for connection in readable:
                    data = connection.recv(65536)
                    if not data:
                        return
                    other_side[connection].sendall(data)
