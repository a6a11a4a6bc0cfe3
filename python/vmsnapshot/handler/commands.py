"""The agent's five commands. Any of them may be run again; enable ends within milliseconds.

A backup job is a process of its own, the worker: the agent ends a command after minutes, reports nothing
while it runs, and may be restarted by a service manager that ends everything it ever started. What a killed
worker left behind is mended here, by whichever command comes next.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from vmsnapshot.handler import service
from vmsnapshot.handler.agent.environment import HandlerEnvironment, sequence_number
from vmsnapshot.handler.agent.events import delete_old_events, write_events
from vmsnapshot.handler.agent.state import State, WorkerRecord, carry_over
from vmsnapshot.handler.agent.status_file import Reporter, open_environment
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.log import Log, shell_line
from vmsnapshot.handler.machine.configuration import (
    WORKLOAD_CONFIGURATION,
    VmBackupConfiguration,
    read_vmbackup_configuration,
    workload_name,
)
from vmsnapshot.handler.machine.processes import name_of
from vmsnapshot.handler.report.outcome import ALREADY_PROCESSED, CANNOT_START, KILLED, TRANSITIONING, Outcome
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings.envelope import read_envelope, scrub
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.wire import Job

ETC_AZURE = Path("/etc/azure")
# How many of the settings and status files that newer ones have put aside are kept of each kind.
KEPT_FILES = 60
# Beyond the thaw timeout: the status and log blobs have a limit of their own each.
WORKER_PATIENCE_SECONDS = 60.0
# The agent ends uninstall after 300 s: these three and the end of the polling service, 90 s, are less.
WORKER_PATIENCE_LIMIT_SECONDS = 125.0
MENDING_LIMIT_SECONDS = 25.0
TURN_LIMIT_SECONDS = 15.0
POLL_SECONDS = 0.02

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


@dataclass(frozen=True)
class KilledJob:
    """A job whose worker was killed before it had told file and blob."""

    record: WorkerRecord
    final_text: str | None
    """What it had told the status file, if that was final."""


def install(context: Context) -> int:
    """Makes `/etc/azure`, the template for workloads, and the bytecode of what a worker imports."""
    workload = WORKLOAD_CONFIGURATION
    try:
        ETC_AZURE.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not workload_name(workload):
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
    killed = _killed(context)
    log.info(f"enable, sequence number {number}")
    delete_old_events(environment.events_folder)
    service.resume(environment, log)
    is_known = number == state.last_sequence_number
    records = [killed_job.record for killed_job in killed]
    mended = _mend(context, [record for record in records if record.sequence_number != number])
    busy = {record.sequence_number for record in state.workers() if record.is_running()}
    _put_aside(environment, {number, *mended, *busy})
    if is_known:
        log.info("this sequence number was taken up before: no second snapshot is taken")
        _look_after(context, number)
        return 0
    _begin(context, number, killed)
    return 0


def _begin(context: Context, number: int, killed: list[KilledJob]) -> None:
    """Begins a job that was not begun before, unless it is an earlier one's task."""
    state, log = context.state, context.log
    job = quick_job(read_envelope(_settings_file(context, number)))
    # First of all: should this command be killed from here on, the next one notices.
    own_name = name_of(os.getpid())
    state.record_worker(number, own_name, job.task_id)
    if not state.remember_sequence_number(number):
        log.error(
            "could not note the sequence number: should the agent ask again, there is a second snapshot"
        )
    reporter = _reporter(context, number, job)
    if job.task_id and job.task_id == state.last_task_id:
        log.info("this task was taken up before, under another sequence number")
        earlier = [killed_job for killed_job in killed if killed_job.record.task_id == job.task_id]
        if earlier:
            # What it came to, as far as it was told under its own number.
            text = next((killed_job.final_text for killed_job in earlier if killed_job.final_text), None)
            if text is None:
                _write(reporter, KILLED)
            else:
                reporter.adopt(text)
            for killed_job in earlier:
                killed_job.record.forget()
            _start_worker(context, number, job.task_id, mends=True)
            return
        _write(reporter, ALREADY_PROCESSED)
        _scrub(context, number)
        state.forget_worker(number, own_name)
        return
    if job.task_id:
        state.remember_task_id(job.task_id)
    _write(reporter, TRANSITIONING)
    if not _start_worker(context, number, job.task_id):
        _write(reporter, CANNOT_START)
        _scrub(context, number)


def _look_after(context: Context, number: int) -> None:
    """Sees to it that a job that was begun before is reported: its worker may have been killed."""
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        # It takes the settings, which the agent has written again, out of the file when it ends.
        return
    job = quick_job(read_envelope(_settings_file(context, number)))
    reporter = _reporter(context, number, job)
    written = reporter.written_report()
    is_recorded = any(record.sequence_number == number for record in context.state.workers())
    if written is not None and written.is_final and not is_recorded:
        _scrub(context, number)
        return
    context.state.record_worker(number, name_of(os.getpid()), job.task_id)
    if written is None or not written.is_final:
        _write(reporter, KILLED)
    _start_worker(context, number, job.task_id, mends=True)


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
    mending = _mend(context, [killed_job.record for killed_job in _killed(context)])
    until = time.monotonic() + MENDING_LIMIT_SECONDS
    for record in context.state.workers():
        is_late = (
            record.sequence_number in mending
            and record.process is not None
            and not record.process.wait(max(0.0, until - time.monotonic()))
        )
        if is_late and record.process is not None:
            # It has frozen nothing.
            record.process.kill()
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
    status = 0
    try:
        with _turn(context):
            if context.state.notice_restore():
                log.info("this VM was restored from another's disks: what is remembered is not ours")
            status = COMMANDS[verb](context)
    except Exception as error:
        # The last place where an enable can still leave a status.
        log.error(f"{verb} failed: {described(error)}")
        print(f"error: {verb} failed: {described(error)}", file=sys.stderr)
        number = sequence_number(environment, environ)
        if verb != "enable":
            status = 1
        elif number is not None:
            _give_up(context, number)
    shell_line(environment.log_folder, f"{verb} ended with {status}")
    write_events(
        environment.events_folder,
        log.warnings_and_errors(),
        version=environment.base_directory.name,
        operation_id=None,
        disabled=configuration.events_disabled,
    )
    return status


def _give_up(context: Context, number: int) -> None:
    """Leaves a final status for a job that could not be begun; one that was begun has its own."""
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        return
    reporter = _reporter(context, number, quick_job(read_envelope(_settings_file(context, number))))
    written = reporter.written_report()
    if written is None or not written.is_final:
        _write(reporter, CANNOT_START)
    _scrub(context, number)


@contextlib.contextmanager
def _turn(context: Context) -> Iterator[None]:
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


def _killed(context: Context) -> list[KilledJob]:
    """Returns the jobs whose worker was killed; thaws what it left, and tells their status files."""
    records = [record for record in context.state.workers() if not record.is_running()]
    if records:
        # Before a line is logged: the disk that it goes to may be the one that is frozen.
        thaw_leftovers(context.log)
    killed = []
    for record in records:
        number = record.sequence_number
        context.log.warning(f"the worker of sequence number {number} was ended before all was told")
        reporter = _reporter(context, number, quick_job(read_envelope(_settings_file(context, number))))
        written = reporter.written_report()
        if written is not None and not written.is_final:
            _write(reporter, KILLED)
        final_text = written.text if written is not None and written.is_final else None
        killed.append(KilledJob(record, final_text))
    return killed


def _mend(context: Context, killed: list[WorkerRecord]) -> set[int]:
    """Has the status blobs of killed jobs told, where their settings still say which they are.

    Returns the numbers for which a process was started; it takes the record away. Another record is kept for
    as long as its task is the last one: the agent may bring the settings again.
    """
    state = context.state
    started = set()
    for record in killed:
        envelope = read_envelope(_settings_file(context, record.sequence_number))
        if envelope.protected_text is not None or quick_job(envelope).status_blob is not None:
            if _start_worker(context, record.sequence_number, record.task_id, mends=True):
                started.add(record.sequence_number)
        elif record.sequence_number != state.last_sequence_number and (
            record.task_id is None or record.task_id != state.last_task_id
        ):
            record.forget()
    return started


def _end_workers(context: Context) -> None:
    """Ends all workers, each after it has thawed."""
    patience_seconds = min(
        context.configuration.thaw_timeout_seconds + WORKER_PATIENCE_SECONDS, WORKER_PATIENCE_LIMIT_SECONDS
    )
    until = time.monotonic() + patience_seconds
    running = [record for record in context.state.workers() if record.is_running()]
    for record in running:
        if record.process is not None:
            record.process.ask_to_end()
    for record in running:
        if record.process is None or record.process.wait(max(0.0, until - time.monotonic())):
            continue
        # First, because the disk of the log may be what it keeps frozen: then its watchdog thaws.
        record.process.kill()
        context.log.error(f"the worker of sequence number {record.sequence_number} had to be killed")


def _start_worker(context: Context, number: int, task_id: str | None, *, mends: bool = False) -> bool:
    """Starts the process that does a job, or that mends its report; False if it cannot be started."""
    environ = {**context.environ, "ConfigSequenceNumber": str(number)}
    environ["AZURE_GUEST_AGENT_EXTENSION_PATH"] = str(context.environment.base_directory)
    try:
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
        context.log.error(f"could not start the worker: {described(error)}")
        return False
    # It does the same as its first act: whichever comes first, the next command knows whom to look for.
    if not context.state.record_worker(number, name_of(worker.pid), task_id):
        context.log.error("could not note the worker: should it be killed, nobody reports its job")
    # It is not waited for: init inherits it.
    worker.returncode = 0
    return True


def _settings_file(context: Context, number: int) -> Path:
    return context.environment.config_folder / f"{number}.settings"


def _scrub(context: Context, number: int) -> None:
    if not scrub(_settings_file(context, number)):
        context.log.warning("the protected settings could not be taken out of the settings file")


def _reporter(context: Context, number: int, job: Job) -> Reporter:
    reporter = Reporter(context.environment, number, job, context.configuration, context.log)
    reporter.add_machine_facts(context.environ)
    return reporter


def _write(reporter: Reporter, outcome: Outcome) -> None:
    reporter.write_file(outcome, reporter.documents(outcome))


def _put_aside(environment: HandlerEnvironment, numbers: set[int]) -> None:
    """Renames the files of all other sequence numbers, so that nobody reads them; keeps the newest.

    Nobody needs the protected settings of an older job any more.
    """
    for folder, suffix in ((environment.config_folder, "settings"), (environment.status_folder, "status")):
        for path in folder.glob(f"*.{suffix}"):
            if path.stem not in map(str, numbers):
                if suffix == "settings":
                    scrub(path)
                # Housekeeping: what cannot be put aside is no reason not to back up.
                with contextlib.suppress(OSError):
                    path.replace(path.with_name(path.name.replace(".", "_")))
        with contextlib.suppress(OSError):
            aside = sorted(folder.glob(f"*_{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in aside[KEPT_FILES:]:
                path.unlink()


def _compile(context: Context) -> None:
    """Imports once what jobs import, so that its bytecode is there: only this command writes any."""
    try:
        for module in ("vmsnapshot.handler.worker", "vmsnapshot.handler.polling", "azure.storage.blob.aio"):
            importlib.import_module(module)
    except Exception as error:
        # A job says what it lacks; without bytecode it is only slower.
        context.log.warning(f"could not import what jobs need: {described(error)}")
