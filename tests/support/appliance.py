"""A network appliance between a client and a service, which adds lines to the head of every answer."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator

ODD_LINES = {
    "blank before the colon": b"X-Appliance : a\r\n",
    "blank in a name": b"X Appliance: a\r\n",
    "line without a colon": b"no colon\r\n",
    "no name": b": a\r\n",
    "control character in a value": b"X-Appliance: a\x01b\r\n",
    "null in a value": b"X-Appliance: a\x00b\r\n",
    "byte above ASCII in a value": b"X-Appliance: a\xffb\r\n",
    "byte above ASCII in a name": b"X-\xff: a\r\n",
    "folded value": b"X-Appliance: a,\r\n b\r\n",
    "folded line without a colon": b"no colon\r\n b\r\n",
    "fold with a colon": b"no colon\r\n Content-Length: 999\r\n",
    "long value": b"X-Appliance: " + b"a" * 9000 + b"\r\n",
    "many lines": b"X-Appliance: a\r\n" * 60,
}
"""Lines that appliances add, although no header may be like that."""

_STATUS_LINE = re.compile(rb"^HTTP/1\.1 [0-9]{3}[^\r\n]*\r\n")


@contextlib.contextmanager
def appliance(to_port: int, lines: bytes) -> Iterator[int]:
    """Forwards connections to a port of this machine, and adds ``lines`` to every answer. Returns its port.

    The service must begin each answer with a segment of its own, as an answer to one request at a time is.
    """
    sockets: list[socket.socket] = []

    def forward(source: socket.socket, target: socket.socket, adds: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                if adds:
                    part = _STATUS_LINE.sub(lambda found: found[0] + lines, part)
                target.sendall(part)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            service = socket.create_connection(("127.0.0.1", to_port), timeout=10)
            sockets.extend((client, service))
            for pair in ((client, service, False), (service, client, True)):
                threading.Thread(target=forward, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # A close alone does not wake a thread that waits in `accept`.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
            for one in sockets:
                one.close()
