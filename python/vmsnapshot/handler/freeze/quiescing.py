"""What is held still during a job's freeze, and what its outcome means to Azure Backup.

Contract, table 8.5 for scripts and chapter 9.4 for databases.
"""

from __future__ import annotations

from dataclasses import replace

from vmsnapshot import Application, ApplicationOutcome, PrepareError
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.machine.configuration import Applications
from vmsnapshot.handler.machine.scripts import ScriptConfiguration
from vmsnapshot.handler.machine.workload import Workload, WorkloadProblem
from vmsnapshot.handler.report.outcome import Outcome, Quiescence, failed
from vmsnapshot.handler.secret import redacted

_SCRIPT_CODES = {
    "pre-script-failed": Code.PRE_SCRIPT_FAILED,
    "pre-script-timeout": Code.PRE_SCRIPT_TIMEOUT,
    "post-script-failed": Code.POST_SCRIPT_FAILED,
    "post-script-timeout": Code.POST_SCRIPT_TIMEOUT,
}
_PRE_CODES = frozenset({Code.PRE_SCRIPT_FAILED, Code.PRE_SCRIPT_TIMEOUT, Code.PRE_KEEPER_LOST})

# Why a database could not be held, by the code of the application. All others failed in the pre step.
_NO_CONNECTION = (Code.WORKLOAD_CONNECTION, "sql connection failed")
_NOT_QUIESCED = (Code.WORKLOAD_QUIESCING, "pre failed to quiesce")
_NOT_HELD = (Code.WORKLOAD_NOT_HELD, "not app consistent")
_WORKLOAD_CODES = {
    "access-denied": _NO_CONNECTION,
    "bad-defaults": _NO_CONNECTION,
    "no-client": _NO_CONNECTION,
    "no-server": _NO_CONNECTION,
    "no-user": _NO_CONNECTION,
    "timed-out": _NO_CONNECTION,
    "too-many-connections": _NO_CONNECTION,
    "lock-timeout": _NOT_QUIESCED,
    "long-statement": _NOT_QUIESCED,
    "data-not-covered": _NOT_HELD,
    "held-too-long": _NOT_HELD,
    "keeper-lost": _NOT_HELD,
    "not-proven": _NOT_HELD,
    "session-lost": _NOT_HELD,
}
_PRE_FAILED = (Code.WORKLOAD_PRE, "Workload Pre failed")


class Quiescing:
    """Holds nothing still: neither scripts nor a database are configured."""

    quiescers: tuple[Application, ...] = ()

    def refusal(self) -> Outcome | None:
        """Returns the outcome of a job that ends because what is configured cannot be done."""
        return None

    def of_run(self, outcomes: list[ApplicationOutcome]) -> Quiescence | None:  # noqa: ARG002
        """Returns what the outcomes of a run mean."""
        return None

    def of_error(self, error: PrepareError) -> Outcome:
        """Returns the outcome of a job that ends before its freeze, because something was not held."""
        return failed(Code.ERROR, f"{error} ")


def quiescing_of(
    applications: Applications, task_id: str | None, directory: str, *, freezes_after_failure: bool
) -> Quiescing:
    """Returns what a job holds still. `freezes_after_failure` is ``OnAppFailureDoFsFreeze``."""
    if applications.workload is not None:
        return _WorkloadQuiescing(applications.workload, freezes_after_failure=freezes_after_failure)
    if applications.scripts.are_configured:
        return _ScriptsQuiescing(applications.scripts, task_id, directory)
    return Quiescing()


class _ScriptsQuiescing(Quiescing):
    def __init__(self, configuration: ScriptConfiguration, task_id: str | None, directory: str) -> None:
        self._configuration = configuration
        scripts = configuration.scripts
        if scripts is not None:
            self.quiescers = (replace(scripts, task=task_id or "", directory=directory),)

    def refusal(self) -> Outcome | None:
        configuration = self._configuration
        code = configuration.problem
        if code is None or code is Code.SCRIPT_CONFIGURATION_PERMISSION or configuration.continues_on_failure:
            return None
        return failed(code, f"Plugin Host Precheck Failed StatusCode.{code.shown_as},")

    def of_run(self, outcomes: list[ApplicationOutcome]) -> Quiescence | None:
        code = self._configuration.problem
        if code is not None:
            return Quiescence(code, cause=f"the scripts were not run: {code.shown_as}")
        for outcome in outcomes:
            # Scripts have no session and no data, so whatever is wrong is an error of theirs.
            if outcome.error_code is not None:
                code = _SCRIPT_CODES.get(outcome.error_code, Code.POST_KEEPER_LOST)
                return self._failed(code, outcome.error or outcome.error_code)
        return Quiescence()

    def of_error(self, error: PrepareError) -> Outcome:
        quiescence = self._failed(_SCRIPT_CODES.get(error.code, Code.PRE_KEEPER_LOST), str(error))
        return replace(failed(quiescence.code or Code.ERROR, quiescence.message), cause=quiescence.cause)

    def _failed(self, code: Code, cause: str) -> Quiescence:
        configuration = self._configuration
        phase = "PreScript" if code in _PRE_CODES else "PostScript"
        if configuration.continues_on_failure and configuration.wants_freeze:
            return Quiescence(code, cause=redacted(cause))
        message = f"{phase} failed for the plugin {configuration.plugin_name} StatusCode.{code.shown_as},"
        return Quiescence(code, True, message, redacted(cause))


class _WorkloadQuiescing(Quiescing):
    def __init__(self, workload: Workload, *, freezes_after_failure: bool) -> None:
        self._problem = workload.problem
        self._freezes_after_failure = freezes_after_failure
        if workload.database is not None:
            self.quiescers = (replace(workload.database, required=not freezes_after_failure),)

    def refusal(self) -> Outcome | None:
        if self._problem is None or self._freezes_after_failure:
            return None
        return self._without_backup(self._problem.cause)

    def of_run(self, outcomes: list[ApplicationOutcome]) -> Quiescence | None:
        if self._problem is not None:
            return _warned(self._problem)
        for outcome in outcomes:
            if outcome.error_code is not None:
                code, text = _WORKLOAD_CODES.get(outcome.error_code, _PRE_FAILED)
                return _warned(WorkloadProblem(code, text, outcome.error or outcome.error_code))
        return Quiescence()

    def of_error(self, error: PrepareError) -> Outcome:
        return self._without_backup(str(error))

    @staticmethod
    def _without_backup(cause: str) -> Outcome:
        message = "Failing backup as OnAppFailureDoFsFreeze is set to false"
        return replace(failed(Code.ERROR, message), cause=redacted(cause))


def _warned(problem: WorkloadProblem) -> Quiescence:
    text = f"{problem.text} StatusCode.{problem.code.shown_as},"
    message = f"Workload Patch failed with warning message: {text}"
    return Quiescence(problem.code, message=message, cause=redacted(problem.cause))
