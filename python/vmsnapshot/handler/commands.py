"""The agent's five commands. Any of them may be run again; enable ends within milliseconds.

A backup job is a process of its own, the worker: the agent ends a command after minutes, reports nothing
while it runs, and may be restarted by a service manager that ends everything it ever started.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

from vmsnapshot.handler import service
from vmsnapshot.handler.agent.environment import HandlerEnvironment, sequence_number
from vmsnapshot.handler.agent.events import delete_old_events, write_events
from vmsnapshot.handler.agent.state import carry_over
from vmsnapshot.handler.context import AgentJob, Context, open_context, turn
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import shell_line
from vmsnapshot.handler.machine.configuration import (
    WORKLOAD_CONFIGURATION,
    workload_name,
)
from vmsnapshot.handler.machine.processes import name_of
from vmsnapshot.handler.report.outcome import ALREADY_PROCESSED, CANNOT_START, KILLED, TRANSITIONING
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings.envelope import scrub
from vmsnapshot.handler.workers import KilledJob, end_mending, end_workers, killed_jobs, mend, start_worker

ETC_AZURE = Path("/etc/azure")
# How many of the settings and status files that newer ones have put aside are kept of each kind.
KEPT_FILES = 60

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
    killed = killed_jobs(context)
    log.info(f"enable, sequence number {number}")
    delete_old_events(environment.events_folder)
    service.resume(environment, log)
    is_known = number == state.last_sequence_number
    mended = mend(context, [killed_job for killed_job in killed if killed_job.asked.number != number])
    busy = {record.sequence_number for record in state.workers() if record.is_running()}
    _put_aside(environment, {number, *mended, *busy})
    seen = [killed_job.asked for killed_job in killed if killed_job.asked.number == number]
    asked = seen[0] if seen else context.read_job(number)
    if is_known:
        log.info("this sequence number was taken up before: no second snapshot is taken")
        _look_after(context, asked)
        return 0
    _begin(context, asked, killed)
    return 0


def _begin(context: Context, asked: AgentJob, killed: list[KilledJob]) -> None:
    """Begins a job that was not begun before, unless it is an earlier one's task."""
    state, log = context.state, context.log
    number, job = asked.number, asked.job
    # First of all: should this command be killed from here on, the next one notices.
    own_name = name_of(os.getpid())
    state.record_worker(number, own_name, job.task_id)
    if not state.remember_sequence_number(number):
        log.error(
            "could not note the sequence number: should the agent ask again, there is a second snapshot"
        )
    reporter = context.reporter_of(asked)
    if job.task_id and job.task_id == state.last_task_id:
        log.info("this task was taken up before, under another sequence number")
        earlier = [killed_job for killed_job in killed if killed_job.record.task_id == job.task_id]
        if earlier:
            # What it came to, as far as it was told under its own number.
            text = next((killed_job.final_text for killed_job in earlier if killed_job.final_text), None)
            if text is None:
                reporter.write(KILLED)
            else:
                reporter.adopt(text)
            for killed_job in earlier:
                killed_job.record.forget()
            start_worker(context, number, job.task_id, mends=True)
            return
        reporter.write(ALREADY_PROCESSED)
        context.scrub_settings(number)
        state.forget_worker(number, own_name)
        return
    if job.task_id:
        state.remember_task_id(job.task_id)
    reporter.write(TRANSITIONING)
    if not start_worker(context, number, job.task_id):
        reporter.write(CANNOT_START)
        context.scrub_settings(number)


def _look_after(context: Context, asked: AgentJob) -> None:
    """Sees to it that a job that was begun before is reported: its worker may have been killed."""
    number, job = asked.number, asked.job
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        # It takes the settings, which the agent has written again, out of the file when it ends.
        return
    reporter = context.reporter_of(asked)
    written = reporter.written_report()
    is_recorded = any(record.sequence_number == number for record in context.state.workers())
    if written is not None and written.is_final and not is_recorded:
        context.scrub_settings(number)
        return
    context.state.record_worker(number, name_of(os.getpid()), job.task_id)
    if written is None or not written.is_final:
        reporter.write(KILLED)
    start_worker(context, number, job.task_id, mends=True)


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
    end_workers(context)
    mended = mend(context, killed_jobs(context))
    end_mending(context, mended)
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
    context = open_context(base_directory, environ)
    environment, log = context.environment, context.log
    status = 0
    try:
        with turn(context):
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
        disabled=context.configuration.events_disabled,
    )
    return status


def _give_up(context: Context, number: int) -> None:
    """Leaves a final status for a job that could not be begun; one that was begun has its own."""
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        return
    # Again, if need be: what the command had read of it is gone with the command.
    reporter = context.reporter_of(context.read_job(number))
    written = reporter.written_report()
    if written is None or not written.is_final:
        reporter.write(CANNOT_START)
    context.scrub_settings(number)


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
