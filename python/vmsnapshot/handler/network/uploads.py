"""Writes the status blob and the log blob of one job, beside other work and never inside the window."""

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
"""Returns the text of the report. The argument is its maximum in bytes, or `None`."""

# More than the limit of the writer itself, and thus only for a writer that hangs.
_LIMIT_SECONDS = 25.0


class Uploads:
    """Writes the blobs of one job in the order of the calls."""

    def __init__(
        self,
        job: Job,
        *,
        connections: Connections,
        telemetry: Telemetry,
        log: Log,
        is_enabled: bool,
    ) -> None:
        """If `is_enabled` is false (``UploadStatusAndLog``), no blob is read or written."""
        self._job = job
        self._background = connections.background
        self._proxies = connections.proxies
        self._telemetry = telemetry
        self._log = log
        self._is_enabled = is_enabled
        self._status = self._writer(job.status_blob)
        self._logs = self._writer(job.logs_blob, may_cut_front=True)
        self._under_way: list[concurrent.futures.Future[None]] = []
        self.is_status_reported = self._status is None
        """Whether the last status reached its blob, or there is no blob that may be written."""

    def begin_status_then_log(self, text: StatusText) -> None:
        """Starts writing the status blob, and then the log blob with all lines so far."""
        self._begin(self._write_status(text), self._write_log())

    def begin_log_then_status(self, text: StatusText) -> None:
        """Starts writing both in the opposite order, which is that of a job that was not started."""
        self._begin(self._write_log(), self._write_status(text))

    def mend_status(self, text: str) -> bool:
        """Writes the status of a job whose worker was killed, unless the blob has a final one.

        Returns False if this process does not know the blob, or could not write it.

        Blocking: the limits of reader and writer.
        """
        uri = self._job.status_blob
        if self._status is None or uri is None:
            return False
        session, proxy = self._background.session, self._proxies.optional_for(uri)
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
        """Waits for all started writes. Never raises.

        Blocking: the limits of the writers, 20 s per blob, or 50 s for a writer that hangs.
        """
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            try:
                future.result(timeout=2 * _LIMIT_SECONDS)
            except concurrent.futures.TimeoutError:
                future.cancel()
                self._fail("a blob was not written in time")
            except Exception as error:
                # A blob that cannot be written must not change the outcome of a job.
                self._fail(f"a blob was not written: {described(error)}")

    def _writer(self, uri: SasUri | None, *, may_cut_front: bool = False) -> BlobWriter | None:
        if uri is None or not self._is_enabled:
            return None
        return BlobWriter(
            uri,
            session=self._background.session,
            proxy=self._proxies.optional_for(uri),
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
        self.is_status_reported = False
        result = await self._status.write(text(None).encode())
        if result.room_bytes is not None:
            # Shorten the error messages instead of cutting the text: half a status is useless.
            result = await self._status.write(text(result.room_bytes).encode())
        self.is_status_reported = not result.failed
        self._tell("status", result)

    async def _write_log(self) -> None:
        if self._logs is not None:
            self._tell("log", await self._logs.write(self._log.blob_text()))

    def _tell(self, name: str, result: WriteResult) -> None:
        if result.remark:
            self._log.warning(f"the {name} blob: {result.remark}")
        if result.failed:
            self._fail(f"the {name} blob was not written: {result.reason}")
        elif not result.written:
            self._log.info(f"the {name} blob was not changed: {result.reason}")

    def _fail(self, text: str) -> None:
        self._telemetry.set("statusBlobUploadError", "true")
        self._log.warning(text)
