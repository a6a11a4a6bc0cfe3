"""The commands of ``vmsnapshot``. Each calls the engine, prints the result and returns an exit status.

This module decides nothing about filesystems or blobs. It chooses the exit status, and it writes the result
of a run even if standard output fails, if the disk of the report fails, or after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from vmsnapshot import _native
from vmsnapshot.cli import rehearsal
from vmsnapshot.cli.arguments import parse_arguments, parse_metadata, wants_json
from vmsnapshot.cli.blob_list import read_blob_list
from vmsnapshot.cli.progress import Progress
from vmsnapshot.cli.readable import plan_text, report_text, status_text, thaw_text
from vmsnapshot.cli.report_file import ReportFile
from vmsnapshot.cli.streams import open_missing_streams, printable, say, say_hint, say_raw, write_out
from vmsnapshot.cli.tables import Screen
from vmsnapshot.errors import ArgumentsError, ThawError, VmsnapshotError
from vmsnapshot.interruptions import Interruptions
from vmsnapshot.proxy import proxy_from_environment, read_proxy
from vmsnapshot.quiesce.specification import parse as parse_application

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorKind, Phase

DONE = 0
FAILED = 1
BAD_ARGUMENTS = 2
NOT_THAWED = 3
INTERRUPTED = 130

# The kind of an error decides the exit status of `plan` and `snapshot`.
EXIT_STATUSES: dict[ErrorKind, int] = {
    "arguments": BAD_ARGUMENTS,
    "system": FAILED,
    "network": FAILED,
    "another-run": FAILED,
    # An earlier run left something frozen, so this one may not say that everything is thawed.
    "left-frozen": NOT_THAWED,
    "interrupted": INTERRUPTED,
}


class _Finished(NamedTuple):
    """A run that returned a report."""

    report: _native.Report
    document: str
    status: int
    interruptions: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status. `None` means the arguments of this process."""
    try:
        open_missing_streams()
        return _main(arguments)
    except KeyboardInterrupt:
        interruption = VmsnapshotError("interrupted", code="interrupted", kind="interrupted")
        return _fail(interruption, INTERRUPTED, as_json=wants_json(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    try:
        parsed = parse_arguments(arguments, _native.version())
    except SystemExit as end:
        # --help and --version.
        return end.code if isinstance(end.code, int) else DONE
    except ArgumentsError as error:
        return _fail(error, BAD_ARGUMENTS, as_json=wants_json(arguments))
    command: Callable[[argparse.Namespace], int] = {
        "plan": _plan,
        "snapshot": _snapshot,
        "freeze": _snapshot,
        "quiesce": _quiesce,
        "status": _status,
        "thaw": _thaw,
    }[parsed.command]
    try:
        return command(parsed)
    except ThawError as error:
        # Only from `status`: `thaw` handles its own errors.
        return _fail(error, FAILED, as_json=parsed.json)
    except VmsnapshotError as error:
        return _fail(error, EXIT_STATUSES[error.kind], as_json=parsed.json)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A panic of the engine is not an `Exception`.
        may_have_frozen = parsed.command in ("snapshot", "freeze", "thaw")
        status = _exit_status_after_failed_thaw() if may_have_frozen else FAILED
        return _fail(_unexpected(error), status, as_json=parsed.json)


def _plan(parsed: argparse.Namespace) -> int:
    plan = _native.plan(include=parsed.include, exclude=parsed.exclude)
    _warn_of_unmatched(plan)
    if parsed.json:
        return _print(_pretty(plan.to_json()), DONE)
    return _print(plan_text(plan, Screen.of_standard_output(), every=parsed.all), DONE)


def _snapshot(parsed: argparse.Namespace) -> int:
    """Does ``snapshot`` and ``freeze``, which differ in what they ask for inside the window."""
    report_file = ReportFile(parsed.report) if parsed.report is not None else None
    finished: _Finished | None = None
    try:
        interruptions = Interruptions()
        asked = _command(parsed) if parsed.command == "freeze" else _snapshots(parsed)
        session = _prepare(parsed, asked, interruptions)
        with interruptions, session:
            report = _run(session)
            # Before the hold ends, so that Ctrl-C cannot come between the run and its report.
            document = _pretty(report.to_json())
            status = _exit_status_of(report)
            if report_file is not None:
                status = _keep(report_file, document, report, status)
            finished = _Finished(report, document, status, interruptions.noted)
    except VmsnapshotError as error:
        if report_file is not None:
            _keep_error(report_file, error)
        raise
    except KeyboardInterrupt:
        # A signal at the end of the hold must not suppress the report.
        pass
    except BaseException as error:
        if report_file is not None:
            _keep_error(report_file, _unexpected(error))
        raise
    if finished is None:
        return _interrupted(report_file, as_json=parsed.json)
    return _print_finished(finished, as_json=parsed.json)


def _quiesce(parsed: argparse.Namespace) -> int:
    applications = [parse_application(text) for text in parsed.applications]
    plan = _native.plan(include=parsed.mount, exclude=parsed.exclude)
    _warn_of_unmatched(plan)
    rehearse = rehearsal.check if parsed.action == "check" else rehearsal.hold_once
    rehearsed = rehearse(applications, plan)
    status = DONE if all(item.is_good for item in rehearsed if item.required) else FAILED
    if parsed.json:
        return _print(_dump(rehearsal.document(rehearsed)), status)
    return _print(rehearsal.text(rehearsed, Screen.of_standard_output()), status)


def _status(parsed: argparse.Namespace) -> int:
    status = _native.status()
    text = _pretty(status.to_json()) if parsed.json else status_text(status, Screen.of_standard_output())
    if status.frozen:
        return _print(text, NOT_THAWED)
    # A ledger that cannot be read may be that of a run that left something frozen.
    return _print(text, FAILED if status.unreadable else DONE)


def _thaw(parsed: argparse.Namespace) -> int:
    try:
        result = _native.thaw()
    except ThawError as error:
        return _fail(error, _exit_status_after_failed_thaw(), as_json=parsed.json)
    text = _pretty(result.to_json()) if parsed.json else thaw_text(result, Screen.of_standard_output())
    if result.failed:
        return _print(text, NOT_THAWED)
    return _print(text, FAILED if result.left_alone else DONE)


def _unexpected(error: BaseException) -> VmsnapshotError:
    """Returns the error for a failure without a code. Leaves out its text, which may hold a secret."""
    if isinstance(error, MemoryError):
        return VmsnapshotError(
            "the command ran out of memory",
            code="out-of-memory",
            kind="system",
            hint="free memory, or raise the limit (`ulimit -v`, the control group)",
        )
    return VmsnapshotError(
        f"the command failed unexpectedly ({type(error).__name__})",
        code="unexpected",
        kind="system",
        hint="run `vmsnapshot status`, and report this as a defect unless threads or memory are short",
    )


def _interrupted(report_file: ReportFile | None, *, as_json: bool) -> int:
    interruption = VmsnapshotError("interrupted; nothing was frozen", code="interrupted", kind="interrupted")
    if report_file is not None:
        _keep_error(report_file, interruption)
    return _fail(interruption, INTERRUPTED, as_json=as_json)


def _print_finished(finished: _Finished, *, as_json: bool) -> int:
    try:
        if finished.interruptions:
            name = finished.interruptions[0]
            say(f"{name} arrived after the run had begun. The run ended by itself, and this is its report")
        output = finished.report.command.output.decode("utf-8", "replace") if finished.report.command else ""
        if as_json:
            if output:
                say_raw(output)
            return _print(finished.document, finished.status)
        text = report_text(finished.report, Screen.of_standard_output())
        return _print(f"{output}\n{text}" if output else text, finished.status)
    except KeyboardInterrupt:
        # The user does not wait until the reader has read everything. The exit status stays true.
        return finished.status


def _command(parsed: argparse.Namespace) -> dict[str, Any]:
    """Returns what ``freeze`` asks the engine for."""
    return {"command": parsed.words}


def _snapshots(parsed: argparse.Namespace) -> dict[str, Any]:
    """Returns what ``snapshot`` asks the engine for."""
    metadata = parse_metadata(parsed.metadata)
    if parsed.blobs_from is not None:
        blobs = read_blob_list(parsed.blobs_from)
    else:
        blobs = parsed.blob
        say("warning: every user can see SAS URIs on the command line; prefer --blobs-from")
    proxy = parsed.proxy
    if proxy is not None and "@" in proxy:
        say("warning: every user can see a proxy's password on the command line; prefer https_proxy")
    if proxy is None and not parsed.no_proxy:
        proxy = proxy_from_environment(blobs)
    if proxy is not None:
        proxy, warning = read_proxy(proxy)
        if warning is not None:
            say(f"warning: {warning}")
    return {
        "blobs": blobs,
        "metadata": metadata,
        "call_timeout": parsed.call_timeout,
        "connect_timeout": parsed.connect_timeout,
        "ca_file": parsed.ca_file,
        "proxy": proxy,
    }


def _prepare(
    parsed: argparse.Namespace, asked: dict[str, Any], interruptions: Interruptions
) -> _native.Session:
    quiescers = [parse_application(text) for text in parsed.quiesce]
    plan = _native.plan(include=parsed.mount, exclude=parsed.exclude)
    _warn_of_unmatched(plan)
    progress = Progress()

    def on_phase(phase: Phase) -> None:
        progress(phase)
        if phase == "freeze":
            interruptions.hold()

    try:
        return _native.prepare(
            plan,
            thaw_timeout=parsed.thaw_timeout,
            freeze_timeout=parsed.freeze_timeout,
            sync_timeout=parsed.sync_timeout or None,
            expedite_rcu=parsed.expedite_rcu,
            quiescers=quiescers,
            progress=on_phase,
            **asked,
        )
    finally:
        progress.close()


def _run(session: _native.Session) -> _native.Report:
    try:
        return session.run()
    except (VmsnapshotError, KeyboardInterrupt):
        # Both can only come before the window. Inside it, signals are noted.
        raise
    except BaseException as error:
        # The engine promises a report once it froze anything. If that fails, assume the worst: exit status 1
        # would say that everything is thawed.
        raise VmsnapshotError(
            f"the run ended without a report ({type(error).__name__}); something may still be frozen",
            code="run-lost",
            kind="left-frozen",
            hint="run `vmsnapshot status`, and `vmsnapshot thaw` if it shows anything",
        ) from error


def _keep(report_file: ReportFile, document: str, report: _native.Report, status: int) -> int:
    """Writes the report, and returns the exit status that is true afterwards."""
    stuck = [item.device for item in report.filesystems if item.outcome in ("not-thawed", "freeze-hung")]
    if report_file.is_on(stuck):
        say(f"error: the report was not written to `{report_file.path}`: its filesystem is still frozen")
        return status
    try:
        report_file.write(document)
        for application in report.applications:
            for name, content in application.files.items():
                # A name of an application may hold a slash; it must not choose the directory.
                report_file.write_beside(f"{application.name.replace('/', '_')}.{name}", content)
    except OSError as error:
        _say_unwritten(report_file, error)
        return status or FAILED
    return status


def _keep_error(report_file: ReportFile, error: VmsnapshotError) -> None:
    # The report's own filesystem may be frozen, and there is no way to ask.
    if error.kind == "left-frozen":
        return
    try:
        report_file.write(_error_document(error))
    except OSError as cause:
        _say_unwritten(report_file, cause)


def _say_unwritten(report_file: ReportFile, error: OSError) -> None:
    cause = (error.strerror or "input/output error").lower()
    say(f"error: the report could not be written to `{report_file.path}`: {cause}")


def _exit_status_of(report: _native.Report) -> int:
    if not report.all_thawed:
        return NOT_THAWED
    return DONE if report.consistent else FAILED


def _exit_status_after_failed_thaw() -> int:
    """Returns `NOT_THAWED` if something is still frozen, or if this cannot be found out."""
    try:
        return NOT_THAWED if _native.status().frozen else FAILED
    except VmsnapshotError:
        return NOT_THAWED


def _warn_of_unmatched(plan: _native.Plan) -> None:
    for pattern in plan.unmatched_excludes:
        say(f"warning: the exclude pattern `{pattern}` matches nothing")


def _fail(error: VmsnapshotError, status: int, *, as_json: bool) -> int:
    say(f"error: {error}")
    hint = _hint_of(error)
    if hint:
        say_hint(hint)
    return _print(_error_document(error), status) if as_json else status


def _error_document(error: VmsnapshotError) -> str:
    return _dump({"error": {"code": error.code, "message": printable(str(error)), "hint": _hint_of(error)}})


def _hint_of(error: VmsnapshotError) -> str | None:
    # The engine does not know the command's options: the extension has no such one.
    if error.hint and "trust store" in error.hint:
        return f"{error.hint}; or name a file with the certificate with `--ca-file`"
    return error.hint


def _print(text: str, status: int) -> int:
    """Prints a result. If this fails, a success becomes a failure. Every other status stays."""
    cause = write_out(text)
    if cause is None:
        return status
    say(f"error: could not write to standard output: {cause}")
    return status or FAILED


def _pretty(document: str) -> str:
    return _dump(json.loads(document))


def _dump(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"
