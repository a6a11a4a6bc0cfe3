"""Writes what a job came to where the agent reads it: one status file, replaced atomically on every path."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from vmsnapshot.handler.configuration import VmBackupConfiguration
from vmsnapshot.handler.environment import (
    HandlerEnvironment,
    HandlerEnvironmentError,
    assumed_environment,
    read_environment,
)
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import EXTENSION_LOG, Log
from vmsnapshot.handler.outcome import Outcome
from vmsnapshot.handler.settings import Job
from vmsnapshot.handler.state import State
from vmsnapshot.handler.status import StatusDocuments, StatusReport, StorageDetails, render
from vmsnapshot.handler.telemetry import Telemetry, machine_facts

NOTHING_MEASURED = StorageDetails()


def open_environment(
    base_directory: Path, configuration: VmBackupConfiguration, *, file_name: str = EXTENSION_LOG
) -> tuple[HandlerEnvironment, Log]:
    """Reads where this process's files are, and makes its log; what cannot be read is assumed, and logged."""
    problem = None
    try:
        environment = read_environment(base_directory)
    except HandlerEnvironmentError as error:
        environment, problem = assumed_environment(base_directory), str(error)
    log = Log(
        environment.log_folder,
        environment.base_directory.name,
        file_name=file_name,
        write_log=configuration.write_log,
    )
    if problem:
        log.error(f"{problem}; the agent's usual folders are assumed")
    return environment, log


class Reporter:
    """Makes and writes the status documents of one job."""

    def __init__(
        self,
        environment: HandlerEnvironment,
        sequence_number: int,
        job: Job,
        state: State,
        *,
        real_consistency_numbers: bool = False,
    ) -> None:
        self.job = job
        self.telemetry = Telemetry()
        self.real_consistency_numbers = real_consistency_numbers
        self._environment = environment
        self._state = state
        self._sequence_number = sequence_number

    @property
    def status_file(self) -> Path:
        """The file that the agent reads."""
        return self._environment.status_folder / f"{self._sequence_number}.status"

    @property
    def settings_file(self) -> Path:
        """The file that the agent wrote."""
        return self._environment.config_folder / f"{self._sequence_number}.settings"

    def add_machine_facts(self, environ: Mapping[str, str]) -> None:
        """Adds what the report says of machine and extension."""
        environment = self._environment
        for key, value in machine_facts(environment.base_directory, environment.lib_directory, environ):
            self.telemetry.set(key, value)

    def documents(self, outcome: Outcome, storage: StorageDetails = NOTHING_MEASURED) -> StatusDocuments:
        """Makes both documents, as of now."""
        consistency = "crashConsistent" if outcome.is_crash_consistent else "none"
        self.telemetry.set("consistencyType", consistency)
        return render(
            StatusReport(
                handler_name=self._environment.name,
                schema_version=self._environment.schema_version,
                job=self.job,
                outcome=outcome,
                telemetry=tuple((pair["Key"], pair["Value"]) for pair in self.telemetry.pairs()),
                written_at=datetime.datetime.now(datetime.timezone.utc),
                storage=storage,
                machine_id=self._state.unique_machine_id(),
                real_consistency_numbers=self.real_consistency_numbers,
            )
        )

    def write_file(self, documents: StatusDocuments, *, replaces_only: bool = False) -> None:
        """Writes the status file; with `replaces_only` not where a newer command has put it aside.

        Raises:
            OSError: it could not be written.
        """
        if not replaces_only or self.status_file.exists():
            write_atomically(self.status_file, documents.file, 0o644)
