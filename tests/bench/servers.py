"""The blob services of the benchmark: Azurite over HTTP and HTTPS, and one that serves in parallel."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import processes
from tests.support.azurite import Azurite
from tests.support.certificates import Certificates

SERVICE_MS = 50
AZURITE_HTTP = "azurite-http"
AZURITE_HTTPS = "azurite-https"
PARALLEL = "parallel"
NAMES = {
    AZURITE_HTTP: "Azurite over HTTP",
    AZURITE_HTTPS: "Azurite over HTTPS",
    PARALLEL: f"a server that takes {SERVICE_MS} ms a call, all in parallel",
}

_PARALLEL_PROGRAM = Path(__file__).with_name("parallel_server.py")


@dataclass(frozen=True)
class Service:
    """A running blob service with its blobs."""

    uris: list[str]
    ca_file: Path | None


@contextlib.contextmanager
def serving(kind: str, blob_count: int, directory: Path, certificates: Certificates) -> Iterator[Service]:
    """Runs a new, warm service: Azurite starts slowly, and slows with every snapshot in its store."""
    if kind == PARALLEL:
        with _parallel_server() as port:
            yield Service([sas_uri(port, f"disk-{index}") for index in range(blob_count)], None)
        return
    secured = certificates if kind == AZURITE_HTTPS else None
    with Azurite(directory, secured) as azurite:
        azurite.warm_up(300)
        names = [f"disk-{index}" for index in range(blob_count)]
        for name in names:
            azurite.create_page_blob(name)
        yield Service([azurite.sas_uri(name) for name in names], secured.ca_file if secured else None)


def sas_uri(port: int, blob: str) -> str:
    """Returns a blob's URI with a SAS of the right form, for a server that does not check it."""
    now = datetime.datetime.now(datetime.timezone.utc)
    start, expiry = now - datetime.timedelta(minutes=15), now + datetime.timedelta(hours=1)
    return (
        f"http://127.0.0.1:{port}/disks/{blob}?sv=2018-03-28&sr=b&sig=c2lnbmF0dXJl%3D"
        f"&st={start:%Y-%m-%dT%H%%3A%M%%3A%SZ}&se={expiry:%Y-%m-%dT%H%%3A%M%%3A%SZ}&sp=rw"
    )


@contextlib.contextmanager
def _parallel_server() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_PARALLEL_PROGRAM), str(SERVICE_MS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        if process.stdin is not None:
            process.stdin.close()
        processes.end(process, limit_seconds=2.0)
