"""The agent's five commands. Each of them can run again at any time, and enable returns within milliseconds.

A backup job runs in a process of its own, the worker. The agent kills a command after some minutes and
reports nothing while the command runs. The service manager may restart the agent, and then ends all its
processes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Callable

import vmsnapshot
from vmsnapshot.handler import service
from vmsnapshot.handler.agent.environment import HandlerEnvironment, sequence_number
from vmsnapshot.handler.agent.events import delete_old_events, write_events
from vmsnapshot.handler.agent.state import carry_over
from vmsnapshot.handler.context import AgentJob, Context, open_context, turn
from vmsnapshot.handler.files import write_atomically
from vmsnapshot.handler.log import shell_line
from vmsnapshot.handler.machine.processes import name_of
from vmsnapshot.handler.machine.workload import WORKLOAD_CONFIGURATION, workload_name
from vmsnapshot.handler.report.outcome import ALREADY_PROCESSED, CANNOT_START, KILLED, TRANSITIONING
from vmsnapshot.handler.secret import described
from vmsnapshot.handler.settings.envelope import scrub
from vmsnapshot.handler.workers import (
    KilledJob,
    end_mending,
    end_workers,
    killed_jobs,
    mend,
    start_mending,
    start_worker,
)

ETC_AZURE = Path("/etc/azure")
# How many old settings files, and how many old status files, are kept.
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
    """Creates `/etc/azure`, the template of workload.conf, and the bytecode of what a worker imports."""
    workload = WORKLOAD_CONFIGURATION
    try:
        ETC_AZURE.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not workload_name(workload):
            write_atomically(workload, _WORKLOAD_TEMPLATE, 0o600)
    except OSError as error:
        # Not a reason to fail. A job needs the directory for the lock, and reports if it is missing.
        context.log.warning(f"could not prepare `{ETC_AZURE}`: {error.strerror}")
    _compile(context)
    return 0


def enable(context: Context) -> int:
    """Records the job and starts its worker. A job that was started before is not started again."""
    environment, state, log = context.environment, context.state, context.log
    number = sequence_number(environment, context.environ)
    if number is None:
        log.error("there is no sequence number: the agent passed none, and there is no settings file")
        return 0
    killed = killed_jobs(context)
    log.info(f"enable, sequence number {number}")
    delete_old_events(environment.events_folder)
    service.resume(environment, log)
    is_known = number == state.last_sequence_number
    mended = mend(context, [killed_job for killed_job in killed if killed_job.asked.number != number])
    busy = {record.sequence_number for record in state.workers() if record.is_running()}
    _put_aside(environment, {number, *mended, *busy})
    seen = (killed_job.asked for killed_job in killed if killed_job.asked.number == number)
    asked = next(seen, None) or context.read_job(number)
    if is_known:
        log.info("this sequence number was processed before: no second snapshot is taken")
        _look_after(context, asked)
        return 0
    _begin(context, asked, killed)
    return 0


def _begin(context: Context, asked: AgentJob, killed: list[KilledJob]) -> None:
    """Starts a job whose sequence number is new, unless its task was processed under an earlier number."""
    state, log = context.state, context.log
    number, job = asked.number, asked.job
    # First of all, so that the next command notices if this one is killed.
    own_name = name_of(os.getpid())
    state.record_worker(number, own_name, job.task_id)
    if not state.remember_sequence_number(number):
        log.error(
            "could not record the sequence number: if the agent asks again, there will be a second snapshot"
        )
    reporter = context.reporter_of(asked)
    if job.task_id and job.task_id == state.last_task_id:
        log.info("this task was processed before, under another sequence number")
        earlier = [killed_job for killed_job in killed if killed_job.record.task_id == job.task_id]
        if earlier:
            # The outcome of the task, if it was reported under its own number.
            text = next((killed_job.final_text for killed_job in earlier if killed_job.final_text), None)
            if text is None:
                reporter.write(KILLED)
            else:
                reporter.adopt(text)
            for killed_job in earlier:
                killed_job.record.forget()
            start_mending(context, [(number, job.task_id)])
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
    """Ensures that a job that was started before gets a final status. Its worker may have been killed."""
    number, job = asked.number, asked.job
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        # The agent has written the settings again. The worker scrubs the file when it ends.
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
    start_mending(context, [(number, job.task_id)])


def update(context: Context) -> int:
    """Copies the state to the directory of the other version.

    On an upgrade the code of the new version runs, and fetches the state of the old one. On a downgrade the
    agent runs the code of the version that is removed (both variables then name the other version), and it
    passes on its own state.
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
        context.log.info(f"copied {', '.join(carried) or 'nothing'} from `{source.name}` to `{target.name}`")
    service.move(context.environment, target, context.log)
    return 0


def disable(context: Context) -> int:
    """Ends the running workers, each after its thaw, and the polling service."""
    end_workers(context)
    mended = mend(context, killed_jobs(context))
    end_mending(context, mended)
    service.stop(context.environment, context.log)
    # No later command may come that would remove what killed workers left.
    vmsnapshot.leave_control_group()
    return 0


def uninstall(context: Context) -> int:
    """Does what `disable` does, and removes the polling service."""
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
    """Runs one command of the agent. Whatever happens, enable writes a status."""
    context = open_context(base_directory, environ)
    environment, log = context.environment, context.log
    status = 0
    try:
        with turn(context):
            if context.state.notice_restore():
                log.info("this VM was restored from another VM's disks: the recorded state is not its own")
            status = COMMANDS[verb](context)
    except Exception as error:
        # The last place where enable can still write a status.
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
    """Writes a final status for a job that could not be started. A job that was started has its own."""
    if any(record.is_running() for record in context.state.workers() if record.sequence_number == number):
        return
    # Maybe for the second time: the exception has discarded what the command had read.
    reporter = context.reporter_of(context.read_job(number))
    written = reporter.written_report()
    if written is None or not written.is_final:
        reporter.write(CANNOT_START)
    context.scrub_settings(number)


def _put_aside(environment: HandlerEnvironment, numbers: set[int]) -> None:
    """Renames the files of all other sequence numbers, so that the agent ignores them, and keeps the newest.

    Older jobs no longer need their protected settings, so they are removed from the files.
    """
    for folder, suffix in ((environment.config_folder, "settings"), (environment.status_folder, "status")):
        for path in folder.glob(f"*.{suffix}"):
            if path.stem not in map(str, numbers):
                if suffix == "settings":
                    scrub(path)
                # Only housekeeping: the backup goes on if a file cannot be renamed.
                with contextlib.suppress(OSError):
                    path.replace(path.with_name(path.name.replace(".", "_")))
        with contextlib.suppress(OSError):
            aside = sorted(folder.glob(f"*_{suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in aside[KEPT_FILES:]:
                path.unlink()


def _compile(context: Context) -> None:
    """Imports once what jobs import, to write its bytecode. No other command writes bytecode."""
    try:
        for module in ("vmsnapshot.handler.worker", "vmsnapshot.handler.polling", "azure.storage.blob.aio"):
            importlib.import_module(module)
    except Exception as error:
        # A job reports what is missing. Without bytecode it is only slower.
        context.log.warning(f"could not import what jobs need: {described(error)}")
