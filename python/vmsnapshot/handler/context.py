"""Where a process of the handler runs: its files, its log, and what the owner of the VM has set.

Also its turn: one command works at a time.
"""

from __future__ import annotations

import contextlib
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
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class AgentJob:
    """One job as the agent hands it over."""

    number: int
    """Its sequence number."""
    envelope: Envelope
    """What its settings file held when this process read it."""

    @property
    def job(self) -> Job:
        """What can be told of it without a decryption."""
        return quick_job(self.envelope)


@dataclass(frozen=True)
class Context:
    """Where a process of the handler runs.

    What is read from files is read once: what a process has seen is passed on, not looked at again.
    """

    environment: HandlerEnvironment
    environ: Mapping[str, str]
    configuration: VmBackupConfiguration
    log: Log
    state: State

    @cached_property
    def applications(self) -> Applications:
        """What the owner has set up to quiesce applications."""
        return read_applications()

    @cached_property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What every report says of the machine and of this extension.

        Blocking: at most a second, and that only if a process does not give its command line.
        """
        return tuple(
            machine_facts(
                self.environment.base_directory,
                self.environment.lib_directory,
                self.environ,
                pre_post_enabled=self.applications.names_workload,
            )
        )

    @cached_property
    def sender(self) -> Sender:
        """Who this process reports as. Making it may write a file: not while disks may be frozen."""
        return Sender(
            handler_name=self.environment.name,
            schema_version=self.environment.schema_version,
            machine_id=self.state.unique_machine_id(),
            real_consistency_numbers=self.configuration.real_consistency_numbers,
        )

    def read_job(self, number: int) -> AgentJob:
        """Reads what the agent has written of a job; never fails, as `read_envelope` does not."""
        return AgentJob(number, read_envelope(self.environment.files_of(number).settings))

    def reporter_of(self, asked: AgentJob) -> Reporter:
        """Makes what reports on a job to the agent."""
        files = self.environment.files_of(asked.number)
        return Reporter(asked.job, files, self.sender, Telemetry(self.facts), self.log)

    def scrub_settings(self, number: int) -> None:
        """Takes the protected settings out of a job's file as it is now: the agent may have rewritten it."""
        if not scrub(self.environment.files_of(number).settings):
            self.log.warning("the protected settings could not be taken out of the settings file")


def open_context(
    base_directory: Path, environ: Mapping[str, str], *, file_name: str = EXTENSION_LOG
) -> Context:
    """Reads where this process's files are and what the owner has set, and makes its log.

    What cannot be read is assumed, and logged.
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
        log.error(f"{problem}; the agent's usual folders are assumed")
    state = State(environment.base_directory, environment.lib_directory)
    return Context(environment, environ, configuration, log, state)


@contextlib.contextmanager
def turn(context: Context) -> Iterator[None]:
    """Lets one command at a time do its work: the agent may be restarted while one is running."""
    descriptor = os.open(context.environment.base_directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + TURN_LIMIT_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > until:
                context.log.warning("another command is still running: going on beside it")
                break
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
