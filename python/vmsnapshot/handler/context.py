"""Where a process of the handler runs: its files, its log, and the configuration of the VM's owner.

Also the turn of a command: only one command works at a time.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmsnapshot.handler.agent.environment import (
    HandlerEnvironment,
    HandlerEnvironmentError,
    assumed_environment,
    read_environment,
)
from vmsnapshot.handler.agent.state import State
from vmsnapshot.handler.agent.status_file import Reporter
from vmsnapshot.handler.log import EXTENSION_LOG, Log
from vmsnapshot.handler.machine.configuration import (
    Applications,
    VmBackupConfiguration,
    read_applications,
    read_vmbackup_configuration,
)
from vmsnapshot.handler.machine.facts import machine_facts
from vmsnapshot.handler.report.status import Sender
from vmsnapshot.handler.report.telemetry import Telemetry
from vmsnapshot.handler.settings.envelope import Envelope, read_envelope, scrub
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.wire import Job

TURN_LIMIT_SECONDS = 15.0
# The service gives up on a command after this time (contract 1.7).
LATE_AFTER = datetime.timedelta(minutes=140)
# A report takes a minute at most: decryption, and a status blob that does not answer.
MENDING_TURN_LIMIT_SECONDS = 120.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class AgentJob:
    """One job as the agent passes it to the handler."""

    number: int
    """The sequence number."""
    envelope: Envelope
    """The content of its settings file when this process read it."""

    @property
    def job(self) -> Job:
        """What is known of the job without decryption."""
        return quick_job(self.envelope)

    @property
    def may_name_status_blob(self) -> bool:
        """Whether the settings name the status blob, or may name it in their protected part."""
        return self.envelope.protected_text is not None or self.job.status_blob is not None


@dataclass(frozen=True)
class Context:
    """Where a process of the handler runs.

    Each file is read once. Later code receives what was read, and does not read it again.
    """

    environment: HandlerEnvironment
    environ: Mapping[str, str]
    configuration: VmBackupConfiguration
    log: Log
    state: State

    @cached_property
    def applications(self) -> Applications:
        """Which applications the owner wants to be quiesced."""
        return read_applications()

    @cached_property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """The facts about the machine and this extension that every report contains.

        Blocking: at most a second, and only if the command line of a process cannot be read at once.
        """
        return tuple(
            machine_facts(
                self.environment.base_directory,
                self.environment.lib_directory,
                self.environ,
                pre_post_enabled=self.applications.workload is not None,
            )
        )

    @cached_property
    def sender(self) -> Sender:
        """The fixed part of all reports. The first access may write a file, so make it before the freeze."""
        return Sender(
            handler_name=self.environment.name,
            schema_version=self.environment.schema_version,
            machine_id=self.state.unique_machine_id(),
            real_consistency_numbers=self.configuration.real_consistency_numbers,
        )

    def read_job(self, number: int) -> AgentJob:
        """Reads the settings file of a job. Like `read_envelope`, this never fails."""
        return AgentJob(number, read_envelope(self.environment.files_of(number).settings))

    def reporter_of(self, asked: AgentJob) -> Reporter:
        """Returns the reporter of a job."""
        files = self.environment.files_of(asked.number)
        return Reporter(asked.job, files, self.sender, Telemetry(self.facts), self.log)

    def is_late(self, number: int) -> bool:
        """Returns whether the service no longer waits for a job, by the time of its settings file."""
        try:
            written_at = self.environment.files_of(number).settings.stat().st_mtime
        except OSError:
            return True
        return time.time() - written_at > LATE_AFTER.total_seconds()

    def scrub_settings(self, number: int) -> None:
        """Removes the protected settings from a job's file, which the agent may have rewritten meanwhile."""
        if not scrub(self.environment.files_of(number).settings):
            self.log.warning("could not remove the protected settings from the settings file")


def open_context(
    base_directory: Path, environ: Mapping[str, str], *, file_name: str = EXTENSION_LOG
) -> Context:
    """Reads the environment and the configuration of this process, and creates its log.

    If the environment cannot be read, the usual one is assumed and the problem is logged.
    """
    configuration = read_vmbackup_configuration()
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
        log.error(f"{problem}; using the agent's usual folders")
    state = State(environment.base_directory, environment.lib_directory)
    return Context(environment, environ, configuration, log, state)


@contextlib.contextmanager
def turn(context: Context) -> Iterator[None]:
    """Waits until no other command is at work. The agent may be restarted while a command is running."""
    with _locked(context.environment.base_directory, TURN_LIMIT_SECONDS) as is_alone:
        if not is_alone:
            context.log.warning("another command is still running: continuing beside it")
        yield


@contextlib.contextmanager
def mending_turn(context: Context) -> Iterator[None]:
    """Waits until no other process mends reports.

    Raises:
        OSError: there are no records of workers.
    """
    with _locked(context.state.workers_directory, MENDING_TURN_LIMIT_SECONDS) as is_alone:
        if not is_alone:
            context.log.warning("another process is still mending reports: continuing beside it")
        yield


@contextlib.contextmanager
def _locked(directory: Path, limit_seconds: float) -> Iterator[bool]:
    """Locks a directory. Yields False if another process held the lock until the limit."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + limit_seconds
        is_locked = False
        while not is_locked and time.monotonic() <= until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_locked = True
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
        yield is_locked
    finally:
        os.close(descriptor)
