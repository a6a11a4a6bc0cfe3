"""The status and log blobs of one job: written beside other work, never in the window."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Coroutine
from typing import Any

from vmsnapshot.handler.background import Background
from vmsnapshot.handler.blobs import BlobWriter, is_own_unfinished
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.proxies import Proxies
from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings import Job
from vmsnapshot.handler.telemetry import Telemetry

# More than the writer's own limit, so that this one is for a writer that is stuck.
_LIMIT_SECONDS = 25.0


class Uploads:
    """Writes the blobs of one job, in the order in which they are given."""

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
        """With `is_enabled` false (``UploadStatusAndLog``) no blob is read or written."""
        self._job = job
        self._background = background
        self._proxies = proxies
        self._telemetry = telemetry
        self._log = log
        self._is_enabled = is_enabled
        self._status = self._writer(job.status_blob)
        self._logs = self._writer(job.logs_blob, may_cut_front=True)
        self._under_way: list[concurrent.futures.Future[None]] = []

    def begin_status_then_log(self, text: str) -> None:
        """Begins to write the status blob, and after it the log blob with all lines so far."""
        self._begin(self._write_status(text), self._write_log())

    def begin_log_then_status(self, text: str) -> None:
        """The same in the other order, which is that of a job that was not begun."""
        self._begin(self._write_log(), self._write_status(text))

    def begin_mending(self, text: str) -> None:
        """Begins to write the status blob although it holds something."""
        self._begin(self._write_status(text, may_replace=True))

    def wait(self) -> None:
        """Waits for what was begun.

        Blocking: the writers' own limits, 20 s a blob.
        """
        for future in self._under_way:
            try:
                future.result(timeout=2 * _LIMIT_SECONDS)
            except concurrent.futures.TimeoutError:
                future.cancel()
                self._fail("a blob was not written in time")
        self._under_way.clear()

    def is_own_unfinished(self) -> bool:
        """Whether the status blob holds this task's transitioning report, which a killed worker left.

        Blocking: the reader's own limit, 10 s.
        """
        uri, task_id = self._job.status_blob, self._job.task_id
        if self._status is None or uri is None or task_id is None:
            return False
        return self._background.submit(
            is_own_unfinished(
                uri, task_id, session=self._background.session, proxy=self._proxies.for_uri(uri)
            )
        ).result()

    def _writer(self, uri: SasUri | None, *, may_cut_front: bool = False) -> BlobWriter | None:
        if uri is None or not self._is_enabled:
            return None
        return BlobWriter(
            uri,
            session=self._background.session,
            proxy=self._proxies.for_uri(uri),
            may_cut_front=may_cut_front,
        )

    def _begin(self, *writes: Coroutine[Any, Any, None]) -> None:
        async def in_turn() -> None:
            for write in writes:
                await write

        self._under_way.append(self._background.submit(in_turn()))

    async def _write_status(self, text: str, *, may_replace: bool = False) -> None:
        await self._write("status", self._status, text.encode(), may_replace=may_replace)

    async def _write_log(self) -> None:
        await self._write("log", self._logs, self._log.blob_text())

    async def _write(
        self, name: str, writer: BlobWriter | None, content: bytes, *, may_replace: bool = False
    ) -> None:
        if writer is None:
            return
        result = await writer.write(content, may_replace=may_replace)
        if result.failed:
            self._fail(f"the {name} blob was not written: {result.reason}")
        elif not result.written:
            self._log.info(f"the {name} blob was left as it is: {result.reason}")

    def _fail(self, text: str) -> None:
        self._telemetry.set("statusBlobUploadError", "true")
        self._log.warning(text)
