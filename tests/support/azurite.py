"""Azurite, the blob service that the tests, the demo and the benchmark snapshot disks on."""

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

# Azurite's own, published, and good for nothing else.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "disks"

_PROGRAM = REPOSITORY / "tests/azurite/node_modules/azurite/dist/src/blob/main.js"
_READY = re.compile(rb"successfully (?:listens|listening) (?:on|at) (https?://[0-9.]+:\d+)")


class Azurite:
    """A running Azurite on a free port of 127.0.0.1, over HTTPS when it is given certificates.

    Use it as a context manager. It dies with the process that started it. Its store is in memory:
    the one on disk is saved every few seconds by the thread that serves, which a benchmark would see.
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
                # Out of reach of the terminal's Ctrl-C: whoever started it ends it.
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
        """The SDK's client of the whole account, for what is not here."""
        return self._service

    def warm_up(self, calls: int = 200) -> None:
        """Takes ``calls`` snapshots of a blob that is then deleted: the first ones find nothing compiled."""
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
        # The service takes at most 4 MiB in one call.
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

        Good from 15 minutes ago for an hour unless told otherwise; times are UTC.
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
        """Returns the times that name a blob's snapshots, oldest first."""
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
        """Ends it: SIGTERM, three seconds, SIGKILL. It can take over 20 s to end by itself."""
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
