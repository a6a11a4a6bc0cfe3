"""Starts and ends the processes that do backup jobs, and mends the reports of killed ones.

A backup job runs in a process of its own, the worker. If a worker is killed, the next `enable`,
`disable` or `uninstall` thaws what it left frozen and completes its report.
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

# In addition to the thaw timeout. The status blob and the log blob have limits of their own.
WORKER_PATIENCE_SECONDS = 60.0
# The agent kills uninstall after 300 s. These limits and that of the polling service, 90 s, add up to less.
WORKER_PATIENCE_LIMIT_SECONDS = 125.0
MENDING_LIMIT_SECONDS = 25.0


@dataclass(frozen=True)
class KilledJob:
    """A job whose worker was killed before it had written both the status file and the status blob."""

    record: WorkerRecord
    asked: AgentJob
    final_text: str | None
    """The text of the status file if that is final, else `None`."""


def killed_jobs(context: Context) -> list[KilledJob]:
    """Thaws what killed workers left frozen, writes their status files, and returns their jobs."""
    records = [record for record in context.state.workers() if not record.is_running()]
    if records:
        # Before anything is logged, because the log may lie on the frozen filesystem.
        thaw_leftovers(context.log)
    killed = []
    for record in records:
        number = record.sequence_number
        context.log.warning(f"the worker of sequence number {number} ended before it had reported")
        asked = context.read_job(number)
        reporter = context.reporter_of(asked)
        written = reporter.written_report()
        if written is not None and not written.is_final:
            reporter.write(KILLED)
        final_text = written.text if written is not None and written.is_final else None
        killed.append(KilledJob(record, asked, final_text))
    return killed


def mend(context: Context, killed: list[KilledJob]) -> set[int]:
    """Starts a process per killed job that writes its status blob, if its settings still name the blob.

    Returns the numbers for which a process was started. That process removes the record. Any other record
    stays as long as its task is the last one, because the agent may write the settings again.
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
    """Ends all workers, each after its thaw."""
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
        # Kill first, log second: the worker may keep the disk of the log frozen, and its watchdog then thaws.
        record.process.kill()
        context.log.error(f"the worker of sequence number {record.sequence_number} had to be killed")


def end_mending(context: Context, numbers: set[int]) -> None:
    """Waits for the processes that mend these jobs' reports, and kills those that take too long."""
    until = time.monotonic() + MENDING_LIMIT_SECONDS
    for record in context.state.workers():
        is_late = (
            record.sequence_number in numbers
            and record.process is not None
            and not record.process.wait(max(0.0, until - time.monotonic()))
        )
        if is_late and record.process is not None:
            # A mending process freezes nothing.
            record.process.kill()


def start_worker(context: Context, number: int, task_id: str | None, *, mends: bool = False) -> bool:
    """Starts the process that does a job or mends its report. Returns False if it cannot be started."""
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
            # The agent kills its own process group.
            start_new_session=True,
        )
    except OSError as error:
        context.log.error(f"could not start the worker: {described(error)}")
        return False
    # The worker writes the same record first of all. Whichever is first, the next command knows the process.
    if not context.state.record_worker(number, name_of(worker.pid), task_id):
        context.log.error("could not record the worker: if it is killed, its job gets no final status")
    # Nothing waits for it. init inherits it.
    worker.returncode = 0
    return True
