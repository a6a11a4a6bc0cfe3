"""The status and log blobs of one job: written beside other work, never in the window."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Coroutine
from typing import Any, Callable, Optional

from vmsnapshot.handler.log import Log
from vmsnapshot.handler.network.blob_writer import BlobWriter, WriteResult, may_be_mended
from vmsnapshot.handler.network.connections import Connections
from vmsnapshot.handler.report.telemetry import Telemetry
from vmsnapshot.handler.secret import SasUri, described
from vmsnapshot.handler.settings.wire import Job

StatusText = Callable[[Optional[int]], str]
"""Gives the report's text, in so many bytes if need be."""

# More than the writer's own limit, so that this one is for a writer that is stuck.
_LIMIT_SECONDS = 25.0


class Uploads:
    """Writes the blobs of one job, in the order in which they are given."""

    def __init__(
        self,
        job: Job,
        *,
        connections: Connections,
        telemetry: Telemetry,
        log: Log,
        is_enabled: bool,
    ) -> None:
        """With `is_enabled` false (``UploadStatusAndLog``) no blob is read or written."""
        self._job = job
        self._background = connections.background
        self._proxies = connections.proxies
        self._telemetry = telemetry
        self._log = log
        self._is_enabled = is_enabled
        self._status = self._writer(job.status_blob)
        self._logs = self._writer(job.logs_blob, may_cut_front=True)
        self._under_way: list[concurrent.futures.Future[None]] = []
        self.is_status_told = self._status is None
        """Whether the last status reached its blob, or the blob is none of ours to write."""

    def begin_status_then_log(self, text: StatusText) -> None:
        """Begins to write the status blob, and after it the log blob with all lines so far."""
        self._begin(self._write_status(text), self._write_log())

    def begin_log_then_status(self, text: StatusText) -> None:
        """The same in the other order, which is that of a job that was not begun."""
        self._begin(self._write_log(), self._write_status(text))

    def mend_status(self, text: str) -> bool:
        """Writes the status of a job whose worker was killed, if that is what the blob lacks.

        False if the blob is not known to this process, or could not be written.

        Blocking: the reader's and the writer's limits.
        """
        uri = self._job.status_blob
        if self._status is None or uri is None:
            return False
        session, proxy = self._background.session, self._proxies.for_uri(uri)
        asking = may_be_mended(uri, self._job.task_id, session=session, proxy=proxy)
        may_be = self._background.submit(asking).result()
        if may_be is None:
            self._log.warning("the status blob cannot be read")
        if not may_be:
            return may_be is not None
        result = self._background.submit(self._status.write(text.encode(), may_replace=True)).result()
        if result.failed:
            self._log.warning(f"the status blob was not written: {result.reason}")
        return result.written

    def wait(self) -> None:
        """Waits for what was begun; raises nothing.

        Blocking: the writers' own limits, 20 s a blob; 50 s for one that is stuck.
        """
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            try:
                future.result(timeout=2 * _LIMIT_SECONDS)
            except concurrent.futures.TimeoutError:
                future.cancel()
                self._fail("a blob was not written in time")
            except Exception as error:
                # A blob that cannot be written must not change what a job comes to.
                self._fail(f"a blob was not written: {described(error)}")

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

    async def _write_status(self, text: StatusText) -> None:
        if self._status is None:
            return
        self.is_status_told = False
        result = await self._status.write(text(None).encode())
        if result.room_bytes is not None:
            # Never cut: a status with shorter error messages is one, its first half is none.
            result = await self._status.write(text(result.room_bytes).encode())
        self.is_status_told = not result.failed
        self._tell("status", result)

    async def _write_log(self) -> None:
        if self._logs is not None:
            self._tell("log", await self._logs.write(self._log.blob_text()))

    def _tell(self, name: str, result: WriteResult) -> None:
        if result.failed:
            self._fail(f"the {name} blob was not written: {result.reason}")
        elif not result.written:
            self._log.info(f"the {name} blob was left as it is: {result.reason}")

    def _fail(self, text: str) -> None:
        self._telemetry.set("statusBlobUploadError", "true")
        self._log.warning(text)
