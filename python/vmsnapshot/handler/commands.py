"""The agent's five commands. Each ends within milliseconds, and any of them may be run again.

A backup job is a process of its own, the worker: the agent ends a command after minutes, reports nothing
while it runs, and may be restarted by a service manager that ends everything it ever started. What a killed
worker left behind is mended here, by whichever command comes next.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from vmsnapshot.handler import service
from vmsnapshot.handler.configuration import VmBackupConfiguration, read_vmbackup_configuration
from vmsnapshot.handler.environment import HandlerEnvironment, sequence_number
from vmsnapshot.handler.events import delete_old_events, write_events
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.leftovers import thaw_leftovers
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.outcome import ALREADY_PROCESSED, CANNOT_START, KILLED, TRANSITIONING, Outcome
from vmsnapshot.handler.processes import name_of
from vmsnapshot.handler.reporting import Reporter, open_environment
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings import Job, quick_job, read_envelope, scrub
from vmsnapshot.handler.state import State, WorkerRecord, carry_over

ETC_AZURE = Path("/etc/azure")
# How many of the settings and status files that newer ones have put aside are kept of each kind.
KEPT_FILES = 60
# Beyond the thaw timeout: the status and log blobs have a limit of their own each.
WORKER_PATIENCE_SECONDS = 60.0
# The agent ends uninstall after 300 s.
WORKER_PATIENCE_LIMIT_SECONDS = 240.0

_WORKLOAD_TEMPLATE = """\
[workload]
workload_name =
command_path =
credString =
linux_user =
role =
enforceSlaveOnly =
ipc_folder =
timeout =
"""


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


def install(context: Context) -> int:
    """Makes `/etc/azure`, the template for workloads, and the bytecode of what a worker imports."""
    workload = ETC_AZURE / "workload.conf"
    try:
        ETC_AZURE.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not _names_a_workload(workload):
            write_atomically(workload, _WORKLOAD_TEMPLATE, 0o600)
    except OSError as error:
        # Jobs need the directory for the lock, and will say so; a read-only /etc is no reason not to install.
        context.log.warning(f"could not prepare `{ETC_AZURE}`: {error.strerror}")
    _compile(context)
    return 0


def enable(context: Context) -> int:
    """Notes the job and hands it to a worker; a job that was handed over before is left as it is."""
    environment, state, log = context.environment, context.state, context.log
    number = sequence_number(environment, context.environ)
    if number is None:
        log.error("there is no sequence number: the agent gave none, and there is no settings file")
        return 0
    log.info(f"enable, sequence number {number}")
    killed = mend(context)
    delete_old_events(environment.events_folder)
    _put_aside(environment, number)
    if state.notice_restore():
        log.info("this VM was restored from another's disks: its last job is not ours")
    service.resume(environment, log)
    settings_file = environment.config_folder / f"{number}.settings"
    if number == state.last_sequence_number:
        log.info("this sequence number was taken up before: nothing is to be done")
        if number in killed:
            # The status blob is still to be told, and only the settings know its URI.
            _start_worker(context, number, mends=True)
        elif not _has_running_worker(state, number):
            scrub(settings_file)
        return 0
    state.remember_sequence_number(number)
    job = quick_job(read_envelope(settings_file))
    reporter = _reporter(context, number, job)
    if job.task_id and job.task_id == state.last_task_id:
        log.info("this task was taken up before, under another sequence number")
        _write(reporter, KILLED if killed else ALREADY_PROCESSED)
        scrub(settings_file)
        return 0
    if job.task_id:
        state.remember_task_id(job.task_id)
    _write(reporter, TRANSITIONING)
    if not _start_worker(context, number):
        _write(reporter, CANNOT_START)
        scrub(settings_file)
    return 0


def update(context: Context) -> int:
    """Takes along what is remembered, to or from the other version's directory.

    On an upgrade the new version's code runs, and brings the old one's state. On a downgrade the agent runs
    the code of the version that goes (both variables then name the other one), which leaves its own.
    """
    base = context.environment.base_directory
    prefix = base.name.rpartition("-")[0]

    def directory_of(variable: str) -> Path | None:
        version = context.environ.get(variable, "")
        path = base.parent / f"{prefix}-{version}"
        return path if version and os.sep not in version and path.is_dir() else None

    source = directory_of("AZURE_GUEST_AGENT_UPDATING_FROM_VERSION")
    target = directory_of("VERSION") or base
    if source is None or source == target:
        source = base
    if source != target:
        carried = carry_over(source, target)
        context.log.info(f"took {', '.join(carried) or 'nothing'} from `{source.name}` to `{target.name}`")
    service.move(context.environment, target, context.log)
    return 0


def disable(context: Context) -> int:
    """Ends running workers, each after it has thawed, and the polling service."""
    _end_workers(context)
    mend(context)
    service.stop(context.environment, context.log)
    return 0


def uninstall(context: Context) -> int:
    """As `disable`, and leaves nothing running and no service behind."""
    disable(context)
    service.remove(context.environment, context.log)
    return 0


COMMANDS: dict[str, Callable[[Context], int]] = {
    "install": install,
    "enable": enable,
    "update": update,
    "disable": disable,
    "uninstall": uninstall,
}


def run(verb: str, base_directory: Path, environ: Mapping[str, str]) -> int:
    """Runs one command of the agent; whatever it meets, enable leaves a status."""
    configuration = read_vmbackup_configuration()
    environment, log = open_environment(base_directory, configuration)
    context = Context(environment, environ, configuration, log)
    try:
        return COMMANDS[verb](context)
    except Exception as error:
        # The last place where an enable can still leave a status.
        log.error(f"{verb} failed: {described(error)}")
        print(f"error: {verb} failed: {described(error)}", file=sys.stderr)
        number = sequence_number(environment, environ)
        if verb != "enable" or number is None:
            return 1
        job = quick_job(read_envelope(environment.config_folder / f"{number}.settings"))
        _write(_reporter(context, number, job), CANNOT_START)
        return 0
    finally:
        write_events(
            environment.events_folder,
            log.warnings_and_errors(),
            version=environment.base_directory.name,
            operation_id=None,
            disabled=configuration.events_disabled,
        )


def mend(context: Context) -> set[int]:
    """Gives every job whose worker was killed its final status; thaws what it left. Returns their numbers."""
    killed = [record for record in context.state.workers() if not record.is_running()]
    if killed:
        thaw_leftovers(context.log)
    for record in killed:
        _mend_one(context, record)
    return {record.sequence_number for record in killed}


def _mend_one(context: Context, record: WorkerRecord) -> None:
    number = record.sequence_number
    context.log.warning(f"the worker of sequence number {number} was ended before it could report")
    settings_file = context.environment.config_folder / f"{number}.settings"
    reporter = _reporter(context, number, quick_job(read_envelope(settings_file)))
    reporter.write_file(reporter.documents(KILLED), replaces_only=True)
    record.forget()


def _end_workers(context: Context) -> None:
    patience_seconds = min(
        context.configuration.thaw_timeout_seconds + WORKER_PATIENCE_SECONDS, WORKER_PATIENCE_LIMIT_SECONDS
    )
    for record in context.state.workers():
        if record.is_running() and not record.process.end(patience_seconds=patience_seconds):
            context.log.error(f"the worker of sequence number {record.sequence_number} had to be killed")


def _start_worker(context: Context, number: int, *, mends: bool = False) -> bool:
    """Starts the worker; False if it cannot be started."""
    state, log = context.state, context.log
    own_name = name_of(os.getpid())
    environ = {**context.environ, "ConfigSequenceNumber": str(number)}
    environ["AZURE_GUEST_AGENT_EXTENSION_PATH"] = str(context.environment.base_directory)
    try:
        # Before there is a worker: should this command be killed now, the next one notices.
        if own_name is not None:
            state.record_worker(number, own_name)
        worker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", sys.argv[0], "mend" if mends else "worker"],
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Out of the process group that the agent ends.
            start_new_session=True,
        )
    except OSError as error:
        log.error(f"could not start the worker: {error.strerror}")
        return False
    name = name_of(worker.pid)
    if name is not None:
        state.record_worker(number, name)
    # It is not waited for: init inherits it.
    worker.returncode = 0
    return True


def _has_running_worker(state: State, number: int) -> bool:
    return any(record.sequence_number == number and record.is_running() for record in state.workers())


def _reporter(context: Context, number: int, job: Job) -> Reporter:
    reporter = Reporter(context.environment, number, job, context.state)
    reporter.add_machine_facts(context.environ)
    return reporter


def _write(reporter: Reporter, outcome: Outcome) -> None:
    reporter.write_file(reporter.documents(outcome))


def _put_aside(environment: HandlerEnvironment, number: int) -> None:
    """Renames the files of other sequence numbers, so that nobody reads them; keeps the newest."""
    for folder, suffix in ((environment.config_folder, "settings"), (environment.status_folder, "status")):
        for path in folder.glob(f"*.{suffix}"):
            if path.name != f"{number}.{suffix}":
                path.replace(path.with_name(path.name.replace(".", "_")))
        aside = sorted(folder.glob(f"*_{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in aside[KEPT_FILES:]:
            path.unlink()


def _names_a_workload(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    pairs = (line.partition("=") for line in lines)
    return any(name.strip().lower() == "workload_name" and value.strip() for name, _, value in pairs)


def _compile(context: Context) -> None:
    """Imports once what jobs import, so that its bytecode is there: only this command writes any."""
    try:
        for module in ("vmsnapshot.handler.worker", "vmsnapshot.handler.polling", "azure.storage.blob.aio"):
            importlib.import_module(module)
    except Exception as error:
        # A job says what it lacks; without bytecode it is only slower.
        context.log.warning(f"could not import what jobs need: {described(error)}")
