"""Writes what a job came to where the agent reads it: one status file, replaced atomically on every path."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass

from vmsnapshot.handler.agent.environment import JobFiles
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.report.outcome import Outcome
from vmsnapshot.handler.report.status import Sender, StatusDocuments, StatusReport, StorageDetails, render
from vmsnapshot.handler.report.telemetry import Telemetry
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings.wire import Job

NOTHING_MEASURED = StorageDetails()


@dataclass(frozen=True)
class WrittenReport:
    """What a status file says."""

    is_final: bool
    text: str
    blob: str
    """The blob report that it embeds."""


class Reporter:
    """Makes and writes the status documents of one job.

    Of the job it needs what the public settings say. So it can be made as soon as the settings file is read,
    before anything is decrypted: a job must get a status whatever its settings are.
    """

    def __init__(self, job: Job, files: JobFiles, sender: Sender, telemetry: Telemetry, log: Log) -> None:
        self.telemetry = telemetry
        self.has_reported = False
        """Whether a final status was written: nothing may replace it."""
        self._job = job
        self._files = files
        self._sender = sender
        self._log = log

    def adopt(self, text: str) -> None:
        """Writes a final status that the same task had under another number.

        Raises:
            OSError: it could not be written.
        """
        write_atomically(self._files.status, text)

    def documents(
        self,
        outcome: Outcome,
        storage: StorageDetails = NOTHING_MEASURED,
        blob_limit_bytes: int | None = None,
    ) -> StatusDocuments:
        """Makes both documents, as of now; the blob's in so many bytes if need be."""
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
        """Writes the status file of a job that no worker is at work on."""
        self.write_file(outcome, self.documents(outcome))

    def write_file(
        self, outcome: Outcome, documents: StatusDocuments, *, replaces_only: bool = False
    ) -> None:
        """Writes the status file; with `replaces_only` not where a newer command has put the job aside.

        Where it cannot be written that is logged: Azure Backup reads the blob.
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
        """Reads the status file back; none if there is none, or it is not one of ours."""
        try:
            text = self._files.status.read_text()
            status = json.loads(text)[0]["status"]
            return WrittenReport(status["code"] != "4", text, str(status["substatus"][0]["name"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None
