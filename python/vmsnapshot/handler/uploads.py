"""The status and log blobs of one job: written beside other work, never in the window."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Coroutine
from typing import Any

from vmsnapshot.handler.background import Background
from vmsnapshot.handler.blobs import BlobWriter, is_own_unfinished
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.proxies import Proxies
from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings import Job
from vmsnapshot.handler.telemetry import Telemetry

# A storage account that does not answer must not keep a job from its freeze, nor from its end: each blob
# has its tries within this.
UPLOAD_LIMIT_SECONDS = 25.0


class Uploads:
    """Writes the blobs of one job, in the background, in the order in which they are given."""

    def __init__(
        self,
        job: Job,
        *,
        background: Background,
        proxies: Proxies,
        telemetry: Telemetry,
        log: Log,
        is_enabled: bool,
    ) -> None:
        self._job = job
        self._background = background
        self._telemetry = telemetry
        self._log = log
        self._status = self._writer(job.status_blob, proxies, is_enabled)
        self._logs = self._writer(job.logs_blob, proxies, is_enabled)
        self._proxies = proxies
        self._under_way: list[concurrent.futures.Future[None]] = []

    def status(self, text: str) -> None:
        """Begins to write the status blob."""
        if self._status is not None:
            self._begin(self._write("status", self._status, text.encode()))

    def log(self) -> None:
        """Begins to write the log blob, with all lines so far."""
        if self._logs is not None:
            self._begin(self._write("log", self._logs, self._log.blob_text()))

    def status_then_log(self, text: str) -> None:
        """Begins to write the one, and the other after it."""
        self._begin(self._in_turn(text))

    def wait(self) -> None:
        """Waits for what was begun, and gives up what takes too long."""
        for future in self._under_way:
            try:
                future.result(timeout=UPLOAD_LIMIT_SECONDS)
            except concurrent.futures.TimeoutError:
                future.cancel()
                self._fail("a blob was not written in time")
            except concurrent.futures.CancelledError:
                pass
        self._under_way.clear()

    def is_own_unfinished(self) -> bool:
        """Whether the status blob holds this task's transitioning report, which a killed worker left."""
        uri, task_id = self._job.status_blob, self._job.task_id
        if self._status is None or uri is None or task_id is None:
            return False
        future = self._background.submit(is_own_unfinished(uri, task_id, proxy=self._proxies.for_uri(uri)))
        with contextlib.suppress(concurrent.futures.TimeoutError):
            return future.result(timeout=UPLOAD_LIMIT_SECONDS)
        return False

    def replace_status(self, text: str) -> None:
        """Begins to write the status blob although it is not empty."""
        if self._status is not None:
            self._begin(self._write("status", self._status, text.encode(), may_replace=True))

    def _writer(self, uri: SasUri | None, proxies: Proxies, is_enabled: bool) -> BlobWriter | None:
        return None if uri is None or not is_enabled else BlobWriter(uri, proxy=proxies.for_uri(uri))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._under_way.append(self._background.submit(work))

    async def _in_turn(self, text: str) -> None:
        if self._status is not None:
            await self._write("status", self._status, text.encode())
        if self._logs is not None:
            await self._write("log", self._logs, self._log.blob_text())

    async def _write(
        self, name: str, writer: BlobWriter, content: bytes, *, may_replace: bool = False
    ) -> None:
        result = await writer.write(content, may_replace=may_replace)
        if result.failed:
            self._fail(f"the {name} blob was not written: {result.reason}")
        elif not result.written:
            self._log.info(f"the {name} blob was left as it is: {result.reason}")

    def _fail(self, text: str) -> None:
        self._telemetry.set("statusBlobUploadError", "true")
        self._log.warning(text)
