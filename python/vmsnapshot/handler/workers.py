"""The processes that do backup jobs: starting them, ending them, and mending what a killed one left.

A backup job is a process of its own, the worker. What a killed worker left behind is mended here, by
whichever command comes next.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from vmsnapshot.handler.agent.state import WorkerRecord
from vmsnapshot.handler.context import AgentJob, Context
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.machine.processes import name_of
from vmsnapshot.handler.report.outcome import KILLED
from vmsnapshot.handler.secret import described

# Beyond the thaw timeout: the status and log blobs have a limit of their own each.
WORKER_PATIENCE_SECONDS = 60.0
# The agent ends uninstall after 300 s: these three and the end of the polling service, 90 s, are less.
WORKER_PATIENCE_LIMIT_SECONDS = 125.0
MENDING_LIMIT_SECONDS = 25.0


@dataclass(frozen=True)
class KilledJob:
    """A job whose worker was killed before it had told file and blob."""

    record: WorkerRecord
    asked: AgentJob
    final_text: str | None
    """What it had told the status file, if that was final."""


def killed_jobs(context: Context) -> list[KilledJob]:
    """Returns the jobs whose worker was killed; thaws what it left, and tells their status files."""
    records = [record for record in context.state.workers() if not record.is_running()]
    if records:
        # Before a line is logged: the disk that it goes to may be the one that is frozen.
        thaw_leftovers(context.log)
    killed = []
    for record in records:
        number = record.sequence_number
        context.log.warning(f"the worker of sequence number {number} was ended before all was told")
        asked = context.read_job(number)
        reporter = context.reporter_of(asked)
        written = reporter.written_report()
        if written is not None and not written.is_final:
            reporter.write(KILLED)
        final_text = written.text if written is not None and written.is_final else None
        killed.append(KilledJob(record, asked, final_text))
    return killed


def mend(context: Context, killed: list[KilledJob]) -> set[int]:
    """Has the status blobs of killed jobs told, where their settings still say which they are.

    Returns the numbers for which a process was started; it takes the record away. Another record is kept for
    as long as its task is the last one: the agent may bring the settings again.
    """
    state = context.state
    started = set()
    for killed_job in killed:
        record, asked = killed_job.record, killed_job.asked
        if asked.envelope.protected_text is not None or asked.job.status_blob is not None:
            if start_worker(context, record.sequence_number, record.task_id, mends=True):
                started.add(record.sequence_number)
        elif record.sequence_number != state.last_sequence_number and (
            record.task_id is None or record.task_id != state.last_task_id
        ):
            record.forget()
    return started


def end_workers(context: Context) -> None:
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


def end_mending(context: Context, numbers: set[int]) -> None:
    """Waits for the processes that mend these jobs' reports; ends those that take too long."""
    until = time.monotonic() + MENDING_LIMIT_SECONDS
    for record in context.state.workers():
        is_late = (
            record.sequence_number in numbers
            and record.process is not None
            and not record.process.wait(max(0.0, until - time.monotonic()))
        )
        if is_late and record.process is not None:
            # It has frozen nothing.
            record.process.kill()


def start_worker(context: Context, number: int, task_id: str | None, *, mends: bool = False) -> bool:
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
