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
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration
from vmsnapshot.handler.report.outcome import Outcome
from vmsnapshot.handler.settings.envelope import scrub
from vmsnapshot.handler.settings.wire import Job

TURN_LIMIT_SECONDS = 15.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Context:
    """Where a command runs."""

    environment: HandlerEnvironment
    environ: Mapping[str, str]
    configuration: VmBackupConfiguration
    log: Log

    @property
    def state(self) -> State:
        """What the handler remembers."""
        return State(self.environment.base_directory, self.environment.lib_directory)


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


def settings_file(context: Context, number: int) -> Path:
    """The file in which the agent has written the settings of a job."""
    return context.environment.config_folder / f"{number}.settings"


def scrub_settings(context: Context, number: int) -> None:
    """Takes the protected settings out of a job's file."""
    if not scrub(settings_file(context, number)):
        context.log.warning("the protected settings could not be taken out of the settings file")


def reporter_of(context: Context, number: int, job: Job) -> Reporter:
    """Makes what reports on a job to the agent."""
    reporter = Reporter(context.environment, number, job, context.configuration, context.log)
    reporter.add_machine_facts(context.environ)
    return reporter


def write(reporter: Reporter, outcome: Outcome) -> None:
    """Writes the status file of a job that no worker is at work on."""
    reporter.write_file(outcome, reporter.documents(outcome))
