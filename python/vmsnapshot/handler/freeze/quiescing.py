"""What is held still during a job's freeze, and what its outcome means to Azure Backup. Contract 8.5."""

from __future__ import annotations

from dataclasses import replace

from vmsnapshot import Application, ApplicationOutcome, PrepareError
from vmsnapshot.handler.codes import Code
from vmsnapshot.handler.machine.scripts import ScriptConfiguration
from vmsnapshot.handler.report.outcome import Outcome, Quiescence, failed
from vmsnapshot.handler.secret import redacted

_SCRIPT_CODES = {
    "pre-script-failed": Code.PRE_SCRIPT_FAILED,
    "pre-script-timeout": Code.PRE_SCRIPT_TIMEOUT,
    "post-script-failed": Code.POST_SCRIPT_FAILED,
    "post-script-timeout": Code.POST_SCRIPT_TIMEOUT,
}
_PRE_CODES = frozenset({Code.PRE_SCRIPT_FAILED, Code.PRE_SCRIPT_TIMEOUT, Code.PRE_KEEPER_LOST})


class Quiescing:
    """The scripts of one job."""

    def __init__(self, configuration: ScriptConfiguration, task_id: str | None, directory: str) -> None:
        self._configuration = configuration
        scripts = configuration.scripts
        self.quiescers: tuple[Application, ...] = (
            () if scripts is None else (replace(scripts, task=task_id or "", directory=directory),)
        )

    def refusal(self) -> Outcome | None:
        """Returns the outcome of a job that the owner wants to end because its scripts cannot be run."""
        configuration = self._configuration
        code = configuration.problem
        if code is None or code is Code.SCRIPT_CONFIGURATION_PERMISSION or configuration.continues_on_failure:
            return None
        return failed(code, f"Plugin Host Precheck Failed StatusCode.{code.shown_as},")

    def of_run(self, outcomes: list[ApplicationOutcome]) -> Quiescence | None:
        """Returns what the outcomes of a run mean. `None` if no scripts are configured."""
        configuration = self._configuration
        if configuration.problem is not None:
            code = configuration.problem
            return Quiescence(code, cause=f"the scripts were not run: {code.shown_as}")
        for outcome in outcomes:
            # Scripts have no session and no data, so whatever is wrong is an error of theirs.
            if outcome.error_code is not None:
                code = _SCRIPT_CODES.get(outcome.error_code, Code.POST_KEEPER_LOST)
                return self._failed(code, outcome.error or outcome.error_code)
        return Quiescence() if outcomes else None

    def of_error(self, error: PrepareError) -> Outcome:
        """Returns the outcome of a job that ends before its freeze, because the pre-script failed."""
        quiescence = self._failed(_SCRIPT_CODES.get(error.code, Code.PRE_KEEPER_LOST), str(error))
        return replace(failed(quiescence.code or Code.ERROR, quiescence.message), cause=quiescence.cause)

    def _failed(self, code: Code, cause: str) -> Quiescence:
        configuration = self._configuration
        phase = "PreScript" if code in _PRE_CODES else "PostScript"
        message = f"{phase} failed for the plugin {configuration.plugin_name} StatusCode.{code.shown_as},"
        ends_job = not (configuration.continues_on_failure and configuration.wants_freeze)
        return Quiescence(code, ends_job, message, redacted(cause))
