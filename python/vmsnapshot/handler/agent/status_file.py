"""Writes the status file of one job, which the agent reads.

It is replaced atomically, or rewritten in place if the disk has no room for a second file.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass

from vmsnapshot.handler.agent.environment import JobFiles
from vmsnapshot.handler.files import read_bytes, write_atomically
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.report.outcome import Outcome
from vmsnapshot.handler.report.status import Sender, StatusDocuments, StatusReport, StorageDetails, render
from vmsnapshot.handler.report.telemetry import Telemetry
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings.wire import Job

NOTHING_MEASURED = StorageDetails()


@dataclass(frozen=True)
class WrittenReport:
    """The content of a status file."""

    is_final: bool
    text: str
    blob: str
    """The embedded blob report."""


class Reporter:
    """Renders and writes the status documents of one job.

    It needs only the public settings of the job. Therefore it can be created as soon as the settings file is
    read, before anything is decrypted. Every job must get a status, whatever its settings are.
    """

    def __init__(self, job: Job, files: JobFiles, sender: Sender, telemetry: Telemetry, log: Log) -> None:
        self.telemetry = telemetry
        self.has_reported = False
        """Whether a final status was written. Nothing may replace it."""
        self._job = job
        self._files = files
        self._sender = sender
        self._log = log

    def adopt(self, text: str) -> None:
        """Writes the final status that the same task had under another number.

        Raises:
            OSError: the file could not be written.
        """
        write_atomically(self._files.status, text)

    def documents(
        self,
        outcome: Outcome,
        storage: StorageDetails = NOTHING_MEASURED,
        blob_limit_bytes: int | None = None,
    ) -> StatusDocuments:
        """Renders both documents as of now. `blob_limit_bytes` limits the size of the blob's."""
        consistency = "crashConsistent" if outcome.is_crash_consistent else "none"
        self.telemetry.set("consistencyType", consistency)
        report = StatusReport(
            sender=self._sender,
            job=self._job,
            outcome=outcome,
            telemetry=self.telemetry.pairs(),
            written_at=datetime.datetime.now(datetime.timezone.utc),
            storage=storage,
        )
        return render(report, blob_limit_bytes)

    def write(self, outcome: Outcome) -> None:
        """Renders the documents and writes the status file. For a job without a running worker."""
        self.write_file(outcome, self.documents(outcome))

    def write_file(
        self, outcome: Outcome, documents: StatusDocuments, *, replaces_only: bool = False
    ) -> None:
        """Writes the status file. `replaces_only` does nothing if a newer command renamed the job's files.

        A failure is only logged, because Azure Backup reads the blob.
        """
        if replaces_only and self._files.are_put_aside():
            return
        try:
            write_atomically(self._files.status, documents.file)
        except OSError as error:
            self._log.error(f"could not write the status file: {described(error)}")
        else:
            self.has_reported |= outcome.is_terminal

    def written_report(self) -> WrittenReport | None:
        """Reads the status file. Returns `None` if it is missing or not written by this extension."""
        try:
            text = read_bytes(self._files.status).decode()
            status = json.loads(text)[0]["status"]
            return WrittenReport(status["code"] != "4", text, str(status["substatus"][0]["name"]))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
