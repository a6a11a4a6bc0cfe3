"""Writes what a job came to where the agent reads it: one status file, replaced atomically on every path."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot.handler.agent.environment import (
    HandlerEnvironment,
)
from vmsnapshot.handler.agent.state import State
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.configuration import (
    SUPPORTED_WORKLOADS,
    VmBackupConfiguration,
    workload_name,
)
from vmsnapshot.handler.machine.facts import machine_facts
from vmsnapshot.handler.report.outcome import Outcome
from vmsnapshot.handler.report.status import StatusDocuments, StatusReport, StorageDetails, render
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
    """Makes and writes the status documents of one job."""

    def __init__(
        self,
        environment: HandlerEnvironment,
        sequence_number: int,
        job: Job,
        configuration: VmBackupConfiguration,
        log: Log,
        *,
        state: State | None = None,
    ) -> None:
        self.job = job
        self.telemetry = Telemetry()
        self.has_reported = False
        """Whether a final status was written: nothing may replace it."""
        self._environment = environment
        self._sequence_number = sequence_number
        self._configuration = configuration
        self._log = log
        state = state or State(environment.base_directory, environment.lib_directory)
        # Now, because it may write a file, which is nothing for the time in which disks may be frozen.
        self._machine_id = state.unique_machine_id()

    @property
    def status_file(self) -> Path:
        """The file that the agent reads."""
        return self._environment.status_folder / f"{self._sequence_number}.status"

    @property
    def settings_file(self) -> Path:
        """The file that the agent wrote."""
        return self._environment.config_folder / f"{self._sequence_number}.settings"

    @property
    def is_put_aside(self) -> bool:
        """Whether a newer command has taken status and settings out of the agent's sight."""
        return not self.status_file.exists() and not self.settings_file.exists()

    def adopt(self, text: str) -> None:
        """Writes a final status that the same task had under another number.

        Raises:
            OSError: it could not be written.
        """
        write_atomically(self.status_file, text)

    def add_machine_facts(self, environ: Mapping[str, str]) -> None:
        """Adds what the report says of machine and extension."""
        environment = self._environment
        for key, value in machine_facts(
            environment.base_directory,
            environment.lib_directory,
            environ,
            pre_post_enabled=workload_name() in SUPPORTED_WORKLOADS,
        ):
            self.telemetry.set(key, value)

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
            handler_name=self._environment.name,
            schema_version=self._environment.schema_version,
            job=self.job,
            outcome=outcome,
            telemetry=tuple((pair["Key"], pair["Value"]) for pair in self.telemetry.pairs()),
            written_at=datetime.datetime.now(datetime.timezone.utc),
            storage=storage,
            machine_id=self._machine_id,
            real_consistency_numbers=self._configuration.real_consistency_numbers,
        )
        return render(report, blob_limit_bytes)

    def write_file(
        self, outcome: Outcome, documents: StatusDocuments, *, replaces_only: bool = False
    ) -> None:
        """Writes the status file; with `replaces_only` not where a newer command has put the job aside.

        Where it cannot be written that is logged: Azure Backup reads the blob.
        """
        if replaces_only and self.is_put_aside:
            return
        try:
            write_atomically(self.status_file, documents.file)
        except OSError as error:
            self._log.error(f"could not write the status file: {described(error)}")
        else:
            self.has_reported |= outcome.is_terminal

    def written_report(self) -> WrittenReport | None:
        """Reads the status file back; none if there is none, or it is not one of ours."""
        try:
            text = self.status_file.read_text()
            status = json.loads(text)[0]["status"]
            return WrittenReport(status["code"] != "4", text, str(status["substatus"][0]["name"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None
