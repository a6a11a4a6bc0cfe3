"""Starts and ends the processes that do backup jobs, and mends the reports of killed ones.

A backup job runs in a process of its own, the worker. If a worker is killed, the next `enable`,
`disable` or `uninstall` thaws what it left frozen and completes its report.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmsnapshot.handler.agent.environment import MENDED_NUMBERS
from vmsnapshot.handler.agent.state import WorkerRecord
from vmsnapshot.handler.context import AgentJob, Context
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.machine.processes import KILL_LIMIT_SECONDS, begin_to_move, name_of
from vmsnapshot.handler.report.outcome import KILLED
from vmsnapshot.handler.secret import described

# In addition to the thaw timeout. The status blob and the log blob have limits of their own.
WORKER_PATIENCE_SECONDS = 60.0
# The agent kills uninstall after 300 s. These limits and that of the polling service, 90 s, add up to less.
WORKER_PATIENCE_LIMIT_SECONDS = 125.0
MENDING_LIMIT_SECONDS = 25.0
CONTROL_GROUP_ROLE = "worker"


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
    """Starts a process that writes the status blobs of killed jobs whose settings still name the blob.

    Returns the numbers of these jobs. The process removes their records, and keeps the settings until then.
    If it is killed, the next command starts another one for what is left. Any other record stays as long as
    its task is the last one, because the agent may write the settings again.
    """
    state = context.state
    mendable = []
    for killed_job in killed:
        record, asked = killed_job.record, killed_job.asked
        if asked.may_name_status_blob:
            mendable.append((record.sequence_number, record.task_id))
        elif record.sequence_number != state.last_sequence_number and (
            record.task_id is None or record.task_id != state.last_task_id
        ):
            record.forget()
    if not mendable or not start_mending(context, mendable):
        return set()
    return {number for number, _ in mendable}


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
    records = [record for record in context.state.workers() if record.sequence_number in numbers]
    # One process mends several jobs. Each of them has a record that names it.
    processes = {record.process for record in records if record.process is not None}
    late = [process for process in processes if not process.wait(max(0.0, until - time.monotonic()))]
    until = time.monotonic() + KILL_LIMIT_SECONDS
    for process in late:
        # A mending process freezes nothing.
        process.kill(max(0.0, until - time.monotonic()))
        # It is a child of this command. Its control group can be removed as soon as it is no zombie.
        process.reap(max(0.0, until - time.monotonic()))


def start_worker(context: Context, number: int, task_id: str | None) -> bool:
    """Starts the process that does a job. Returns False if it cannot be started."""
    return _start(context, "worker", [(number, task_id)], {"ConfigSequenceNumber": str(number)})


def start_mending(context: Context, jobs: Sequence[tuple[int, str | None]]) -> bool:
    """Starts the process that mends the reports of these jobs, in turn. Returns False if it cannot start.

    A job is its sequence number and task id.
    """
    numbers = ",".join(str(number) for number, _ in jobs)
    return _start(context, "mend", jobs, {MENDED_NUMBERS: numbers})


def _start(
    context: Context, verb: str, jobs: Sequence[tuple[int, str | None]], variables: Mapping[str, str]
) -> bool:
    environ = {**context.environ, **variables}
    environ["AZURE_GUEST_AGENT_EXTENSION_PATH"] = str(context.environment.base_directory)
    try:
        worker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", sys.argv[0], verb],
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
    is_moved = begin_to_move(worker.pid, CONTROL_GROUP_ROLE)
    name = name_of(worker.pid)
    for number, task_id in jobs:
        # The worker writes the same record first of all. Whichever is first, the next command knows the
        # process.
        if not context.state.record_worker(number, name, task_id):
            context.log.error("could not record the worker: if it is killed, its job gets no final status")
    if not is_moved():
        context.log.warning("the worker has no control group of its own: ending its service ends it")
    # Nothing waits for it. init inherits it.
    worker.returncode = 0
    return True
