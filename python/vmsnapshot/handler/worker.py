"""One backup job, from the settings to the final status, in a process of its own.

`Worker.run` and `Worker._job` read from top to bottom. Everything that can be done before the freeze is done
before it, and uploads run beside other work. The window belongs to the engine, behind `freeze.attempts`.

Every path writes a final status, and so does every exception.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import vmsnapshot
from vmsnapshot import PlanError, VmsnapshotError
from vmsnapshot.handler import service
from vmsnapshot.handler.agent.environment import mended_numbers, sequence_number
from vmsnapshot.handler.agent.events import write_events
from vmsnapshot.handler.agent.status_file import Reporter
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.context import LATE_AFTER, AgentJob, Context, mending_turn, open_context
from vmsnapshot.handler.freeze.attempts import Attempts, EndedEarlyError
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.quiescing import quiescing_of
from vmsnapshot.handler.machine.configuration import (
    read_waagent_configuration,
)
from vmsnapshot.handler.machine.disks import Disks, partition_count
from vmsnapshot.handler.machine.processes import name_of
from vmsnapshot.handler.machine.sizes import compute, not_computed
from vmsnapshot.handler.network import guest, host
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.connections import Connections
from vmsnapshot.handler.network.host import PreSnapshot
from vmsnapshot.handler.network.proxies import Proxies
from vmsnapshot.handler.network.uploads import StatusText, Uploads
from vmsnapshot.handler.report.outcome import (
    BROKEN,
    INSTALLED,
    KILLED,
    STOPPED,
    TOO_LATE,
    TOO_LATE_AFTER_PREPARATION,
    TRANSITIONING,
    Attempt,
    Outcome,
    certificate_missing,
    failed,
    may_be_crash_consistent,
    outcome_of,
)
from vmsnapshot.handler.report.outcome import Path as Taker
from vmsnapshot.handler.report.status import StatusDocuments, StorageDetails
from vmsnapshot.handler.secret import described, explained
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.mode import choose_mode
from vmsnapshot.handler.settings.parser import parse
from vmsnapshot.handler.settings.protected import OPENSSL, ProtectedSettingsError, decrypt
from vmsnapshot.handler.settings.wire import Command, Job, Settings, SettingsError, SnapshotMode
from vmsnapshot.interruptions import Interruptions


class Worker:
    """One job. Call `run` or `mend`, once."""

    def __init__(
        self,
        context: Context,
        asked: AgentJob,
        reporter: Reporter,
        background: Background,
        interruptions: Interruptions,
    ) -> None:
        self._context = context
        self._asked = asked
        self._reporter = reporter
        self._interruptions = interruptions
        self._log = context.log
        self._waagent = read_waagent_configuration()
        self._connections = Connections(
            background, Proxies(self._waagent), host.host_address(context.environ)
        )
        self._storage = StorageDetails()
        self.may_be_mended_later = False
        """Whether `mend` has failed, and the settings still name the status blob for another try."""
        # When the job is too late, on the monotonic clock. `None` if the rule does not apply.
        self._late_at: float | None = None

    def run(self) -> bool:
        """Does the job and reports its outcome. Returns False if the status blob could not be written."""
        self._log_facts()
        try:
            settings = self._read_settings()
        except SettingsError as error:
            uploads = self._uploads(error.job)
            self._finish_early(failed(error.code, str(error)), uploads)
            return uploads.is_status_reported
        finally:
            # The file does not need them any more, whatever the outcome of the job.
            self._scrub()
        uploads = self._uploads(settings.job)
        try:
            # Not earlier: to report the end of a job, its blobs must be known.
            self._interruptions.release()
            outcome = self._job(settings, uploads)
        except EndedEarlyError as ended:
            self._interruptions.hold()
            self._finish_early(ended.outcome, uploads)
        except KeyboardInterrupt:
            self._finish(STOPPED, uploads)
        except Exception as error:
            self._interruptions.hold()
            # Log its class and place only, because its text may contain the value of a setting. An error of
            # the engine is a sentence for people.
            self._log.error(f"the job failed: {described(error)}")
            code = Code.FILE_NOT_FOUND if isinstance(error, FileNotFoundError) else Code.ERROR
            outcome = failed(code, f"Enable failed. {type(error).__name__} ")
            if isinstance(error, VmsnapshotError):
                outcome = replace(outcome, cause=explained(error))
            self._finish(outcome, uploads)
        else:
            self._finish(outcome, uploads)
        if settings.dynamic_configs.polling and not self._interruptions.noted:
            service.install(self._context.environment, self._log)
        return uploads.is_status_reported

    def mend(self) -> bool:
        """Writes the report of a killed job, which its status file already has, to its status blob.

        Only then are the settings scrubbed: if this process is killed, or the blob does not answer, the next
        command tries again. It does so until the service no longer waits for the job.

        Returns False if the blob could not be written, for example because its URI is no longer known.
        """
        try:
            job = self._read_settings().job
        except SettingsError as error:
            job = error.job
        written = self._reporter.written_report()
        is_final = written is not None and written.is_final
        text = written.blob if written is not None and is_final else self._reporter.documents(KILLED).blob
        is_reported = self._uploads(job).mend_status(text)
        self.may_be_mended_later = (
            not is_reported
            and job.status_blob is not None
            and self._context.configuration.upload_status_and_log
            and not self._context.is_late(self._asked.number)
        )
        if not self.may_be_mended_later:
            self._scrub()
        return is_reported

    def _log_facts(self) -> None:
        facts = dict(self._context.facts)
        self._log.info(
            f"extension {facts['extensionVersion']}, engine {vmsnapshot.__version__}, {facts['osVersion']}, "
            f"kernel {facts['kernelVersion']}, Python {facts['pythonVersion']}, "
            f"agent {facts['guestAgentVersion']}"
        )
        for warnings in (
            self._context.configuration.warnings,
            self._context.applications.scripts.warnings,
            self._context.applications.workload.warnings if self._context.applications.workload else (),
            self._connections.proxies.warnings,
        ):
            for warning in warnings:
                self._log.warning(warning)

    def _read_settings(self) -> Settings:
        protected: Mapping[str, object] = {}
        problem = None
        try:
            protected = self._decrypted(self._asked.envelope)
        except ProtectedSettingsError as error:
            problem = f"{error}; {error.hint}"
            self._log.error(problem)
        settings = parse(self._asked.envelope, protected, protected_problem=problem)
        for warning in settings.warnings:
            self._log.warning(f"settings: {warning}")
        return settings

    def _scrub(self) -> None:
        self._context.scrub_settings(self._asked.number)

    def _decrypted(self, envelope: Envelope) -> Mapping[str, object]:
        if envelope.protected_text is None:
            return {}
        openssl = self._waagent.get("OS.OpensslPath", OPENSSL)
        return decrypt(
            envelope.protected_text,
            envelope.thumbprint or "",
            self._context.environment.lib_directory,
            openssl=openssl,
        )

    def _job(self, settings: Settings, uploads: Uploads) -> Outcome:
        mode = self._mode(settings)
        self._log.info(f"task {settings.job.task_id}, mode {mode.value}, {len(settings.blobs)} blobs")
        if settings.refusal is not None:
            self._begin_without_snapshots(settings)
            return failed(settings.refusal.code, settings.refusal.message)
        if settings.command is Command.INSTALL:
            self._begin_without_snapshots(settings)
            return INSTALLED
        wants_details = mode is SnapshotMode.FIRST_HOST_THEN_GUEST
        pre_snapshot = self._pre_snapshot(settings, wants_details=wants_details)
        self._count_partitions()
        encryption = self._begin_reporting(settings, mode, pre_snapshot, uploads)
        try:
            attempt = self._take_snapshots(settings, mode, pre_snapshot, encryption)
        except EndedEarlyError as ended:
            return ended.outcome
        self._interruptions.hold()
        if not self._log.is_suspended:
            self._measure(settings)
        if attempt.path is Taker.GUEST and not settings.blobs and settings.protected_problem is not None:
            # Not the network: the disks are named in what could not be decrypted.
            return certificate_missing(settings.protected_problem)
        return outcome_of(attempt, may_be_crash_consistent=may_be_crash_consistent(settings))

    def _begin_without_snapshots(self, settings: Settings) -> None:
        """Does what precedes the report of a job that takes no snapshot: the 140-minute rule and the sizes.

        The reference dispatches on the command after the rule, for which it asks the host (contract 2.2). It
        asks before it reads the ticks, so also if they cannot be used for the rule.
        """
        if settings.has_start_ticks:
            self._pre_snapshot(settings, wants_details=False)
        self._count_partitions()
        self._interruptions.hold()
        self._measure(settings)

    def _begin_reporting(
        self, settings: Settings, mode: SnapshotMode, pre_snapshot: PreSnapshot, uploads: Uploads
    ) -> Sequence[str | None]:
        """Reports that the job is running, and meanwhile asks for the encryption settings of the disks.

        All uploads have ended when it returns, so that none runs inside the window.
        """
        documents = self._reporter.documents(TRANSITIONING, self._storage)
        self._reporter.write_file(TRANSITIONING, documents, replaces_only=True)
        uploads.begin_status_then_log(self._text_of(TRANSITIONING, documents))
        is_by_guest = mode is not SnapshotMode.ONLY_HOST and not (
            mode is SnapshotMode.FIRST_HOST_THEN_GUEST and pre_snapshot.is_ok
        )
        encryption = self._encryption(settings) if is_by_guest else ()
        uploads.wait()
        return encryption

    def _mode(self, settings: Settings) -> SnapshotMode:
        try:
            return choose_mode(settings, self._context.configuration.snapshot_method)
        except SettingsError as error:
            raise EndedEarlyError(failed(error.code, str(error))) from None

    def _pre_snapshot(self, settings: Settings, *, wants_details: bool) -> PreSnapshot:
        """Announces the job to the host and receives the host's time. Once, and before the freeze.

        Raises:
            EndedEarlyError: it is too late for the job.
        """
        encrypted = settings.disks.azure_disk_encryption
        answer = self._connections.background.submit(
            host.pre_snapshot(
                self._connections.background.session,
                self._connections.host_address,
                task_id=settings.host_task_id,
                token=settings.snapshot_task_token,
                details=encrypted if encrypted or wants_details else None,
            )
        ).result()
        self._reporter.telemetry.set("hostStatusCodePreSnapshot", str(answer.telemetry_status))
        if answer.error:
            self._log.warning(f"PreSnapshot: {answer.error}")
        elif answer.remarks:
            self._log.info(f"PreSnapshot: {answer.remarks}")
        if settings.start is not None:
            now = answer.response_time or datetime.datetime.now(datetime.timezone.utc)
            # In this order, because `start + LATE_AFTER` can overflow for a start in the year 9999.
            self._late_at = time.monotonic() + (settings.start - now + LATE_AFTER).total_seconds()
        if self._is_late():
            raise EndedEarlyError(TOO_LATE)
        return answer

    def _is_late(self) -> bool:
        return self._late_at is not None and time.monotonic() > self._late_at

    def _take_snapshots(
        self,
        settings: Settings,
        mode: SnapshotMode,
        pre_snapshot: PreSnapshot,
        encryption: Sequence[str | None],
    ) -> Attempt:
        """Makes the attempts of the mode (contract 6.4) and returns the one that counts."""

        def before_freeze() -> None:
            # By the time from PreSnapshot: no call to the host comes between here and the freeze.
            if self._is_late():
                raise EndedEarlyError(TOO_LATE_AFTER_PREPARATION)

        scripts = self._context.applications.scripts
        freezing = Freezing(
            self._context.configuration,
            self._interruptions,
            self._log,
            freeze_is_unwanted_by=None if scripts.wants_freeze else scripts.path,
        )
        if scripts.are_configured:
            self._reporter.telemetry.set("isPrePostEnabled", "true")
        quiescing = quiescing_of(
            self._context.applications,
            self._asked.job.task_id,
            str(self._context.environment.base_directory),
            freezes_after_failure=self._context.configuration.freezes_after_failure,
        )
        refusal = quiescing.refusal()
        if refusal is not None:
            raise EndedEarlyError(refusal)
        attempts = Attempts(
            settings, freezing, self._connections, self._reporter.telemetry, quiescing, before_freeze
        )
        if mode is SnapshotMode.ONLY_HOST:
            return attempts.by_host(pre_snapshot)
        if mode is SnapshotMode.FIRST_HOST_THEN_GUEST:
            if pre_snapshot.is_ok:
                return attempts.by_host(pre_snapshot)
            return attempts.by_guest(encryption, is_fallback_of_host=True)
        attempt = attempts.by_guest(encryption)
        falls_back = (
            mode is SnapshotMode.FIRST_GUEST_THEN_HOST
            and attempt.has_all_failed
            and attempt.freeze.code is None
            # A signal in the first window must not lead to a second window. Nor must a filesystem that is
            # still frozen.
            and not self._interruptions.noted
            and not self._log.is_suspended
        )
        if falls_back:
            self._log.warning("the guest could not take any snapshot; asking the host")
            return attempts.by_host(pre_snapshot)
        return attempt

    def _encryption(self, settings: Settings) -> Sequence[str | None]:
        """Returns the encryption settings per blob, or nothing if the job does not ask for them."""
        if not settings.disks.azure_disk_encryption or not settings.blobs:
            return ()
        return self._connections.background.submit(
            guest.disk_encryption_settings(
                self._connections.background.session,
                settings.blobs,
                # All disks use the same proxy. Otherwise the snapshots fail anyway.
                proxy=self._connections.proxies.optional_for(settings.blobs[0]),
                warn=self._log.warning,
            )
        ).result()

    def _count_partitions(self) -> None:
        try:
            count = partition_count(vmsnapshot.machine().mounts)
        except PlanError as error:
            # Whether the job can go on is decided by its plan.
            self._log.warning(f"could not count the mounted devices: {explained(error)}")
            count = 0
        self._storage = StorageDetails(partition_count=count)

    def _measure(self, settings: Settings) -> None:
        try:
            machine = vmsnapshot.machine()
        except PlanError as error:
            # After the snapshots: they exist, and must be reported.
            sizes = not_computed(settings, explained(error))
        else:
            sizes = compute(
                settings,
                machine.mounts,
                Disks(machine),
                only_local=self._context.configuration.only_local_filesystems,
            )
        for pair in sizes.telemetry:
            self._reporter.telemetry.set(pair.key, pair.value)
        if sizes.why:
            self._log.warning(sizes.why)
        self._storage = StorageDetails(self._storage.partition_count, sizes.total_used_bytes, sizes.failed)

    def _uploads(self, job: Job) -> Uploads:
        return Uploads(
            job,
            connections=self._connections,
            telemetry=self._reporter.telemetry,
            log=self._log,
            is_enabled=self._context.configuration.upload_status_and_log,
        )

    def _finish(self, outcome: Outcome, uploads: Uploads) -> None:
        """Reports on a job that was started, in this order: status file, status blob, log blob."""
        self._interruptions.hold()
        uploads.wait()
        self._reporter.telemetry.set("extErrorCode", outcome.ext_code.shown_as)
        self._tell(outcome)
        documents = self._reporter.documents(outcome, self._storage)
        if self._log.is_suspended:
            # Something may still be frozen, perhaps the disk of our files. Therefore write the blobs first.
            # The files follow after the thaw.
            uploads.begin_status_then_log(self._text_of(outcome, documents))
            uploads.wait()
            self._reporter.write_file(outcome, documents, replaces_only=True)
            self._log.resume()
        else:
            self._reporter.write_file(outcome, documents, replaces_only=True)
            uploads.begin_status_then_log(self._text_of(outcome, documents))
            uploads.wait()
        # The agent may have written the settings again meanwhile, for the same number.
        self._scrub()

    def _finish_early(self, outcome: Outcome, uploads: Uploads) -> None:
        """Reports on a job that was not started, in this order: status file, log blob, status blob."""
        self._interruptions.hold()
        self._tell(outcome)
        documents = self._reporter.documents(outcome)
        self._reporter.write_file(outcome, documents)
        uploads.begin_log_then_status(self._text_of(outcome, documents))
        uploads.wait()
        self._scrub()

    def _text_of(self, outcome: Outcome, documents: StatusDocuments) -> StatusText:
        def text(limit_bytes: int | None) -> str:
            if limit_bytes is None:
                return documents.blob
            return self._reporter.documents(outcome, self._storage, limit_bytes).blob

        return text

    def _tell(self, outcome: Outcome) -> None:
        text = f"ended with {int(outcome.run_code)} ({outcome.run_code.shown_as}), {int(outcome.ext_code)}"
        cause = outcome.cause or ("" if outcome.is_success else outcome.message.strip())
        if cause:
            text += f": {cause}"
        (self._log.info if outcome.is_success else self._log.error)(text)


def run_worker(base_directory: Path, environ: Mapping[str, str]) -> None:
    """Does one job in this process."""
    context = open_context(base_directory, environ)
    number = sequence_number(context.environment, environ)
    if number is None:
        context.log.error("a worker was started without a sequence number")
        return
    with Interruptions() as interruptions:
        # Until the blobs are known, because an early end must be reported to them.
        interruptions.hold()
        task_id = _report_on(context, number, interruptions, mends=False)
    _write_events(context, task_id)


def run_mending(base_directory: Path, environ: Mapping[str, str]) -> None:
    """Mends the reports of killed jobs in this process, in turn, and beside no other such process.

    A signal ends it before the next job. The next command then starts another process for the rest.
    """
    context = open_context(base_directory, environ)
    numbers = mended_numbers(environ)
    name = name_of(os.getpid())
    # First of all, so that the next command starts no second process for these jobs.
    for number in numbers:
        context.state.record_worker(number, name, context.read_job(number).job.task_id)
    with contextlib.suppress(KeyboardInterrupt), Interruptions() as interruptions, mending_turn(context):
        # The newest first, because Azure Backup is still waiting for it.
        for number in sorted(numbers, reverse=True):
            interruptions.obey()
            interruptions.hold()
            _report_on(context, number, interruptions, mends=True)
            interruptions.release()
    _write_events(context, None)


def _report_on(context: Context, number: int, interruptions: Interruptions, *, mends: bool) -> str | None:
    """Does a job or mends its report, and removes its record if it needs no other report.

    Returns its task id.
    """
    environment, state, log = context.environment, context.state, context.log
    asked = context.read_job(number)
    task_id = asked.job.task_id
    name = name_of(os.getpid())
    state.record_worker(number, name, task_id)
    reporter: Reporter | None = None
    may_be_mended_later = False
    try:
        with Background(warn=log.warning) as background:
            background.warm_up()
            # While the imports run, because the facts of the machine take as long.
            reporter = context.reporter_of(asked)
            worker = Worker(context, asked, reporter, background, interruptions)
            if mends:
                is_reported = worker.mend()
                may_be_mended_later = worker.may_be_mended_later
            else:
                is_reported = worker.run() and (
                    reporter.has_reported or environment.files_of(number).are_put_aside()
                )
    except BaseException as error:
        # The worker failed and not the job, or the report of the job's failure failed. A panic of the
        # engine is not an `Exception`.
        interruptions.hold()
        log.error(f"the worker failed: {described(error)}")
        reporter = reporter or context.reporter_of(asked)
        if not reporter.has_reported and not mends:
            reporter.write_file(BROKEN, reporter.documents(BROKEN), replaces_only=True)
        if mends:
            context.scrub_settings(number)
        is_reported = may_be_mended_later = False
        log.resume()
    is_current = number == state.last_sequence_number or (
        task_id is not None and task_id == state.last_task_id
    )
    # The agent may send the settings of the current job again, but not those of an older one.
    if is_reported or not (is_current or may_be_mended_later):
        state.forget_worker(number, name)
    return task_id


def _write_events(context: Context, task_id: str | None) -> None:
    write_events(
        context.environment.events_folder,
        context.log.warnings_and_errors(),
        version=context.environment.base_directory.name,
        operation_id=task_id,
        disabled=context.configuration.events_disabled,
    )
