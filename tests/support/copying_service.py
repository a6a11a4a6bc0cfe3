"""A blob service whose snapshots are copies of the disks' images, taken at the moment of the call.

It answers each call after the copy is made, and copies each disk after a delay of its own: so the disks are
consistent with one another only if nothing is written meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.processes import run_bounded

LIMIT_SECONDS = 20.0


class CopyingService:
    """The service. A disk is called by its name; its snapshot is the newest file of `copies`."""

    def __init__(self, images: Mapping[str, Path], delays_ms: Mapping[str, float], directory: Path) -> None:
        self._images = images
        self._delays_ms = delays_ms
        self._directory = directory
        self.copies: dict[str, Path] = {}
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                name = self.path.partition("?")[0].rpartition("/")[2]
                service.copy(name)
                now = datetime.now(timezone.utc)
                self.send_response(201)
                self.send_header("x-ms-snapshot", f"{now:%Y-%m-%dT%H:%M:%S.%f}0Z")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Prints nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def uris(self) -> list[str]:
        """Returns the URI of each disk."""
        return [f"http://127.0.0.1:{self._server.server_port}/disks/{name}?sig=x" for name in self._images]

    def copy(self, name: str) -> None:
        """Copies one disk."""
        time.sleep(self._delays_ms[name] / 1000)
        target = self._directory / f"{name}-copy-{time.monotonic_ns()}.img"
        run_bounded(["cp", "--sparse=always", self._images[name], target], limit_seconds=LIMIT_SECONDS)
        self.copies[name] = target

    def snapshot_without_a_freeze(self) -> None:
        """Calls for all disks at once, as a program would that freezes nothing."""

        threads = [threading.Thread(target=self.copy, args=(name,)) for name in self._images]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_SECONDS)

    def forget_copies(self) -> None:
        """Removes all copies."""
        for path in self.copies.values():
            path.unlink()
        self.copies.clear()

    def stop(self) -> None:
        """Ends the service."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def copying_service(
    images: Mapping[str, Path], delays_ms: Mapping[str, float], directory: Path
) -> Iterator[CopyingService]:
    """Runs the service for the length of a block."""
    service = CopyingService(images, delays_ms, directory)
    try:
        yield service
    finally:
        service.stop()
