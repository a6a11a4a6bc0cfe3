"""A host that takes snapshots, as the engine sees it: it receives one POST and sends one answer.

It runs in threads of the test's process, so that a test can inspect the machine while a call is in
progress.
"""

from __future__ import annotations

import http.server
import threading
from types import TracebackType
from typing import Callable, NamedTuple


class HostRequest(NamedTuple):
    """A POST as it was received."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes


class Host(http.server.ThreadingHTTPServer):
    """Answers every POST with one status and body, and records the requests. A context manager.

    It calls ``before_answer`` between a request and its answer.
    """

    daemon_threads = True

    def __init__(self, status: int, body: bytes, before_answer: Callable[[], None] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.body = body
        self.before_answer = before_answer
        self.requests: list[HostRequest] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.uri = f"http://{self.address}/dosnapshot"
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join(timeout=5)
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Host
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(HostRequest(self.path, self.headers.items(), body))
        if self.server.before_answer is not None:
            self.server.before_answer()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *arguments: object) -> None:
        """Discards the log line."""
