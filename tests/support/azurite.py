"""Azurite, Microsoft's emulator of the blob service: tests, demo and benchmarks take snapshots on it."""

from __future__ import annotations

import datetime
import re
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from azure.storage.blob import BlobServiceClient, generate_blob_sas

from tests.support import processes
from tests.support.certificates import Certificates
from tests.support.filesystems import REPOSITORY

# The published account of Azurite. It opens nothing else.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "disks"

_PROGRAM = REPOSITORY / "tests/azurite/node_modules/azurite/dist/src/blob/main.js"
_READY = re.compile(rb"successfully (?:listens|listening) (?:on|at) (https?://[0-9.]+:\d+)")


class Azurite:
    """A running Azurite on a free port of 127.0.0.1; over HTTPS if it is given certificates.

    Use it as a context manager. It dies with the process that started it. Its store is in memory,
    because the thread that answers requests saves a store on disk every few seconds, which distorts
    a benchmark.
    """

    def __init__(self, directory: Path, certificates: Certificates | None = None) -> None:
        self.certificates = certificates
        self._log = directory / f"azurite-{'https' if certificates else 'http'}.log"
        arguments: list[str | Path] = ["--blobHost", "127.0.0.1", "--blobPort", "0"]
        arguments += ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
        if certificates:
            arguments += ["--cert", certificates.server_certificate, "--key", certificates.server_key]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "node", str(_PROGRAM), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal must not reach it: `stop` ends it.
                start_new_session=True,
            )
        try:
            self.endpoint = self._wait_until_ready(limit_seconds=30.0)
            self._service = BlobServiceClient(
                f"{self.endpoint}/{ACCOUNT}",
                credential=ACCOUNT_KEY,
                connection_verify=str(certificates.ca_file) if certificates else True,
            )
            self._service.create_container(CONTAINER)
        except BaseException:
            self.stop()
            raise

    @property
    def service(self) -> BlobServiceClient:
        """The SDK's client of the whole account, for calls that this class lacks."""
        return self._service

    def warm_up(self, calls: int = 200) -> None:
        """Takes ``calls`` snapshots of a blob and deletes it: the first calls are slower than later ones."""
        self.create_page_blob("warm-up")
        blob = self._service.get_blob_client(CONTAINER, "warm-up")
        for _ in range(calls):
            blob.create_snapshot()
        blob.delete_blob(delete_snapshots="include")

    def create_page_blob(self, name: str, size_bytes: int = 4096, content: bytes = b"") -> None:
        """Makes a page blob, a multiple of 512 bytes long, that begins with ``content``."""
        blob = self._service.get_blob_client(CONTAINER, name)
        blob.create_page_blob(size_bytes)
        padded = content + bytes(-len(content) % 512)
        # The service accepts at most 4 MiB per call.
        for offset in range(0, len(padded), 4 * 1024 * 1024):
            pages = padded[offset : offset + 4 * 1024 * 1024]
            blob.upload_page(pages, offset=offset, length=len(pages))

    def sas_uri(
        self,
        name: str,
        permission: str = "rw",
        *,
        start: datetime.datetime | None = None,
        expiry: datetime.datetime | None = None,
    ) -> str:
        """Returns a blob's URI with a SAS as Azure Backup sends it: sv, sr=b, sig, st, se, sp.

        By default it is valid from 15 minutes ago until an hour from now. Times are UTC.
        """
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        token = generate_blob_sas(
            account_name=ACCOUNT,
            container_name=CONTAINER,
            blob_name=name,
            account_key=ACCOUNT_KEY,
            permission=permission,
            start=start or now - datetime.timedelta(minutes=15),
            expiry=expiry or now + datetime.timedelta(hours=1),
        )
        return f"{self.endpoint}/{ACCOUNT}/{CONTAINER}/{name}?{token}"

    def snapshots(self, name: str) -> list[str]:
        """Returns the times that identify a blob's snapshots, oldest first."""
        blobs = self._service.get_container_client(CONTAINER).list_blobs(
            name_starts_with=name, include=["snapshots"]
        )
        return sorted(blob.snapshot for blob in blobs if blob.name == name and blob.snapshot)

    def read_snapshot(self, name: str, snapshot: str) -> bytes:
        """Returns the whole content of one snapshot."""
        blob = self._service.get_blob_client(CONTAINER, name, snapshot=snapshot)
        return blob.download_blob().readall()

    def snapshot_metadata(self, name: str, snapshot: str) -> dict[str, str]:
        """Returns the metadata that one snapshot was taken with."""
        blob = self._service.get_blob_client(CONTAINER, name, snapshot=snapshot)
        return dict(blob.get_blob_properties().metadata)

    def stop(self) -> None:
        """Ends it with SIGTERM, and after three seconds with SIGKILL: by itself it can take over 20 s."""
        if hasattr(self, "_service"):
            self._service.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            processes.end(self._process, limit_seconds=3.0)

    def __enter__(self) -> Azurite:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _wait_until_ready(self, *, limit_seconds: float) -> str:
        until = time.monotonic() + limit_seconds
        while time.monotonic() < until and self._process.poll() is None:
            found = _READY.search(self._log.read_bytes())
            if found:
                return found[1].decode()
            time.sleep(0.02)
        raise RuntimeError(f"azurite did not start: {self._log.read_text(errors='replace').strip()}")
