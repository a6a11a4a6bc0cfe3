"""The text for people: plans, reports and statuses. The first line has the answer, and tables explain it.

The first line of a report answers, in this order: did the filesystems thaw, is the snapshot usable, why not,
and what to do next. Every verdict is the engine's. This module decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmsnapshot._native import (
    ApplicationOutcome,
    BlobOutcome,
    CommandOutcome,
    FilesystemOutcome,
    Plan,
    Report,
    RunStatus,
    SkippedFilesystem,
    Status,
    ThawResult,
)
from vmsnapshot.cli.streams import printable
from vmsnapshot.cli.tables import Cell, Column, Screen, Tone, render

if TYPE_CHECKING:
    from vmsnapshot._native import BlobResult, FilesystemResult, RunState

# Filesystems without a disk, which a plan would otherwise list by the dozen. Network and FUSE filesystems are
# not among them, because their owner should see that they are not in the snapshot.
PSEUDO_TYPES = frozenset(
    {
        "autofs",
        "bdev",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "ramfs",
        "resctrl",
        "rootfs",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tmpfs",
        "tracefs",
    }
)

_FILESYSTEM_TONES: dict[FilesystemResult, Tone] = {
    "thawed": Tone.GOOD,
    "thawed-by-watchdog": Tone.DOUBTFUL,
    "thawed-by-another": Tone.DOUBTFUL,
    "frozen-by-another": Tone.DOUBTFUL,
    "not-freezable": Tone.DOUBTFUL,
    "freeze-failed": Tone.DOUBTFUL,
    "not-opened": Tone.DOUBTFUL,
    "freeze-would-wait": Tone.DOUBTFUL,
    "not-writable": Tone.GOOD,
    "unmounted": Tone.GOOD,
    "mounted-since": Tone.DOUBTFUL,
    "not-frozen": Tone.DOUBTFUL,
    "freeze-hung": Tone.BAD,
    "not-thawed": Tone.BAD,
}
_BLOB_TONES: dict[BlobResult, Tone] = {
    "created": Tone.GOOD,
    "refused": Tone.DOUBTFUL,
    "unknown": Tone.DOUBTFUL,
}


def plan_text(plan: Plan, screen: Screen, every: bool = False) -> str:
    """Describes a plan. `every` lists memory and pseudo filesystems one by one."""
    count = len(plan.filesystems)
    text = f"would freeze {_filesystems(count)}, level 0 first, and thaw them in the reverse order\n"
    if count:
        columns = [
            Column("LEVEL", numeric=True),
            Column("MOUNT POINT", flexible=True),
            Column("TYPE"),
            Column("DEVICE"),
            Column("SOURCE", flexible=True),
            Column("ALSO MOUNTED AT", flexible=True),
        ]
        rows = [
            [
                str(filesystem.level),
                filesystem.mount_point,
                filesystem.filesystem_type,
                filesystem.device,
                filesystem.source,
                " ".join(filesystem.also_mounted_at) or "-",
            ]
            for filesystem in plan.filesystems
        ]
        text += "\n" + render(columns, rows, screen)
    listed = [skipped for skipped in plan.skipped if every or not _is_folded(skipped)]
    folded = [skipped for skipped in plan.skipped if not every and _is_folded(skipped)]
    if listed:
        columns = [
            Column("SKIPPED", flexible=True),
            Column("TYPE"),
            Column("SOURCE", flexible=True),
            Column("WHY", flexible=True),
        ]
        rows = [[item.mount_point, item.filesystem_type, item.source, item.why] for item in listed]
        text += "\n" + render(columns, rows, screen)
    if folded:
        types = ", ".join(sorted({printable(skipped.filesystem_type) for skipped in folded}))
        line = f"also skipped: {len(folded)} memory and pseudo filesystems ({types}); --all lists them"
        text += "\n" + screen.fold(line) + "\n"
    if plan.unreadable_mounts:
        line = "some mounts are not known, so a run would not be called consistent; could not read:"
        text += "\n" + screen.paint(screen.fold(line), Tone.DOUBTFUL) + "\n"
        text += _notes([(item.path, item.why) for item in plan.unreadable_mounts], screen)
    return text


def report_text(report: Report, screen: Screen) -> str:
    """Describes what a run did, and whether its snapshots are consistent."""
    tone = Tone.BAD if not report.all_thawed else Tone.GOOD if report.consistent else Tone.DOUBTFUL
    text = screen.paint(screen.fold(headline(report)), tone) + "\n"
    if report.filesystems:
        columns = [
            Column("FILESYSTEM", flexible=True),
            Column("TYPE"),
            Column("LEVEL", numeric=True),
            Column("OUTCOME"),
            Column("FREEZE", numeric=True),
            Column("FROZEN", numeric=True),
            Column("THAWED BY"),
        ]
        text += "\n" + render(columns, [_filesystem_row(item) for item in report.filesystems], screen)
        text += _notes([(item.mount_point, item.error) for item in report.filesystems], screen)
    if report.unreadable_mounts:
        text += "\n" + screen.fold("some mounts are not known; could not read:") + "\n"
        text += _notes([(item.path, item.why) for item in report.unreadable_mounts], screen)
    if report.blobs:
        columns = [
            Column("BLOB", flexible=True),
            Column("OUTCOME"),
            Column("SNAPSHOT"),
            Column("HTTP", numeric=True),
            Column("ANSWER", numeric=True),
        ]
        text += "\n" + render(columns, [_blob_row(blob) for blob in report.blobs], screen)
        text += _notes([(blob.uri, _blob_error(blob)) for blob in report.blobs], screen)
    if report.applications:
        columns = [
            Column("APPLICATION", flexible=True),
            Column("KIND"),
            Column("OUTCOME"),
            Column("PROOF"),
            Column("WAITED", numeric=True),
            Column("HELD", numeric=True),
        ]
        text += "\n" + render(columns, [_application_row(item) for item in report.applications], screen)
        text += _notes([(item.name, _application_error(item)) for item in report.applications], screen)
    return text + "\n" + _run_text(report, screen)


def headline(report: Report) -> str:
    """Answers in one line: did the filesystems thaw, is the snapshot usable, why not, and what to do next."""
    parts = [_thaw_part(report), _worth_part(report)]
    if report.why is not None:
        parts.append(printable(report.why))
    next_step = _next_step(report)
    if next_step is not None:
        parts.append(next_step)
    return "; ".join(parts)


_RUN_STATES: dict[RunState, tuple[str, Tone]] = {
    "at-work": ("at work", Tone.DOUBTFUL),
    "late": ("late: its watchdog cannot thaw yet", Tone.BAD),
    "abandoned": ("ended early", Tone.BAD),
    "over": ("over", Tone.GOOD),
    "of-another-version": ("of another version", Tone.BAD),
}


def status_text(status: Status, screen: Screen) -> str:
    """Describes what is frozen, by which run, since when."""
    frozen = status.frozen
    at_work = {run.run_id: run.thaws_by for run in status.runs if run.state == "at-work"}
    tended = {run.run_id for run in status.runs if run.state in ("at-work", "late")}
    if not frozen and status.unreadable:
        line = "it is not known whether something is frozen: a ledger could not be read"
        text = screen.paint(screen.fold(line), Tone.DOUBTFUL) + "\n"
    elif not frozen:
        text = screen.paint("nothing is frozen by vmsnapshot", Tone.GOOD) + "\n"
    elif all(filesystem.run_id in at_work for filesystem in frozen):
        limits = [limit for limit in at_work.values() if limit is not None]
        until = f", and everything is thawed by {max(limits)}" if limits else ""
        line = f"{_are(len(frozen))} frozen; the run is at work{until}"
        text = screen.paint(line, Tone.DOUBTFUL) + "\n"
    elif all(filesystem.run_id in tended for filesystem in frozen):
        # `thaw` leaves these alone.
        line = f"{_are(len(frozen))} frozen; its watchdog calls FITHAW until it succeeds"
        text = screen.paint(line, Tone.BAD) + "\n"
    else:
        line = f"{_are(len(frozen))} frozen; run `vmsnapshot thaw`"
        text = screen.paint(line, Tone.BAD) + "\n"
    if frozen:
        columns = [
            Column("FROZEN", flexible=True),
            Column("DEVICE"),
            Column("STATE"),
            Column("SINCE"),
            Column("RUN", flexible=True),
        ]
        rows: list[list[Cell | str]] = [
            [
                item.mount_point,
                item.device,
                Cell(item.state, Tone.BAD),
                item.since or "-",
                item.run_id,
            ]
            for item in frozen
        ]
        text += "\n" + render(columns, rows, screen)
    if status.runs:
        columns = [
            Column("RUN", flexible=True),
            Column("PROCESS"),
            Column("WATCHDOG"),
            Column("STATE"),
        ]
        text += "\n" + render(columns, [_run_row(run) for run in status.runs], screen)
    for ledger in status.unreadable:
        cause = printable(ledger.why)
        line = f"could not read `{printable(ledger.path)}`: {cause}; it may be the ledger of a run"
        text += "\n" + screen.fold(line) + "\n"
    holder = status.rcu_expedited.held_by
    if holder is not None:
        line = f"run {printable(holder)} switched expedited RCU on, and it is not restored yet"
        text += "\n" + screen.fold(line) + "\n"
    return text


def thaw_text(result: ThawResult, screen: Screen) -> str:
    """Describes what a thaw did."""
    thawed, failed, left_alone = result.thawed, result.failed, result.left_alone
    if failed:
        line, tone = f"NOT THAWED: {_are(len(failed))} still frozen; run `vmsnapshot thaw` again", Tone.BAD
    elif left_alone:
        done = f"thawed {_filesystems(len(thawed))}" if thawed else "nothing was thawed"
        line, tone = f"{done}; something was left alone (below)", Tone.DOUBTFUL
    elif thawed:
        line, tone = f"thawed {_filesystems(len(thawed))}; no run has left anything frozen", Tone.GOOD
    else:
        line, tone = "there was nothing to thaw", Tone.GOOD
    text = screen.paint(line, tone) + "\n"
    rows: list[list[Cell | str]] = []
    rows += [[item.mount_point, Cell("still frozen", Tone.BAD), item.run_id, item.error] for item in failed]
    rows += [[item.mount_point, Cell("thawed", Tone.GOOD), item.run_id, "-"] for item in thawed]
    rows += [
        [item.mount_point, Cell("left alone", Tone.DOUBTFUL), item.run_id, item.why] for item in left_alone
    ]
    if rows:
        columns = [
            Column("FILESYSTEM", flexible=True),
            Column("OUTCOME"),
            Column("RUN"),
            Column("WHY", flexible=True),
        ]
        text += "\n" + render(columns, rows, screen)
    if result.rcu_restored:
        text += "\nexpedited RCU, which a run had left switched on, was put back\n"
    return text


def duration_text(milliseconds: float | None) -> str:
    """Returns a length of time with its unit, or ``-`` for `None`."""
    if milliseconds is None:
        return "-"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.2f} ms"


def _thaw_part(report: Report) -> str:
    if not report.all_thawed:
        stuck = [item for item in report.filesystems if item.outcome in ("not-thawed", "freeze-hung")]
        names = ", ".join(f"`{printable(item.mount_point)}`" for item in stuck)
        return f"NOT THAWED: {names}" if names else "NOT THAWED: something may still be frozen"
    count = sum(item.frozen_at is not None for item in report.filesystems)
    if not count:
        return "nothing was frozen"
    return "the filesystem is thawed" if count == 1 else f"all {count} filesystems are thawed"


def _worth_part(report: Report) -> str:
    created = sum(blob.outcome == "created" for blob in report.blobs)
    total = len(report.blobs)
    if report.command is not None and total == 0:
        if report.consistent:
            return f"the command ended while everything was frozen ({report.consistency})"
        return "what the command made is not known to be consistent"
    if report.consistent:
        if total == 0:
            return f"consistent ({report.consistency}), and no blob was given"
        subject = "the snapshot is" if total == 1 else f"all {total} snapshots are"
        return f"{subject} complete and consistent ({report.consistency})"
    if report.consistency == "none":
        return f"there is no usable snapshot ({created} of {total} created)"
    subject = "the snapshot is" if total == 1 else f"the {created} of {total} snapshots are"
    return f"{subject} not consistent (worth: {report.consistency})"


def _next_step(report: Report) -> str | None:
    if not report.all_thawed:
        return "run `vmsnapshot thaw`, then `vmsnapshot status`"
    if report.consistent:
        return None
    if report.command is not None and report.command.outcome == "too-late":
        return "run it again, with a longer thaw timeout if the command is always that slow"
    if any(item.outcome == "frozen-by-another" for item in report.filesystems):
        return "run it again after the other program has thawed"
    if any(blob.outcome == "refused" and not blob.retryable for blob in report.blobs):
        return "fix what was refused (below), then run it again"
    if any(blob.outcome == "unknown" for blob in report.blobs):
        return "check whether the blobs marked unknown have a snapshot to delete, then run it again"
    if report.freeze_doubt_code == "answered-late":
        return "run it again, with a longer thaw timeout if the service is always that slow"
    return "run it again"


def _filesystem_row(item: FilesystemOutcome) -> list[Cell | str]:
    return [
        item.mount_point,
        item.filesystem_type,
        str(item.level),
        Cell(item.outcome, _FILESYSTEM_TONES[item.outcome]),
        duration_text(item.freeze_ms),
        duration_text(item.frozen_ms),
        item.thawed_by or "-",
    ]


def _blob_row(blob: BlobOutcome) -> list[Cell | str]:
    return [
        blob.uri,
        Cell(blob.outcome, Tone.DOUBTFUL if blob.answered_late else _BLOB_TONES[blob.outcome]),
        blob.snapshot or "-",
        "-" if blob.http_status is None else str(blob.http_status),
        duration_text(blob.answer_ms),
    ]


def _application_row(item: ApplicationOutcome) -> list[Cell | str]:
    return [
        item.name,
        item.kind,
        Cell(item.outcome, _application_tone(item)),
        item.proof or "-",
        duration_text(item.lock_wait_ms),
        duration_text(item.held_ms),
    ]


def _application_tone(item: ApplicationOutcome) -> Tone:
    if item.outcome == "held":
        return Tone.GOOD
    return Tone.BAD if item.required else Tone.DOUBTFUL


def _application_error(item: ApplicationOutcome) -> str | None:
    return ": ".join(part for part in (item.error_code, item.error) if part) or None


def _blob_error(blob: BlobOutcome) -> str | None:
    text = ": ".join(part for part in (blob.error_code, blob.message) if part)
    if text and blob.retryable:
        text += " (worth another try)"
    return text or None


def _notes(errors: Sequence[tuple[str, str | None]], screen: Screen) -> str:
    # Below the table and not in it, because a sentence cut to the width of a column is useless.
    lines = [f"  {printable(subject)}: {printable(error)}" for subject, error in errors if error]
    return "".join(screen.fold(line, indent="    ") + "\n" for line in lines)


def _run_text(report: Report, screen: Screen) -> str:
    if report.mode.rcu_expedited:
        rcu = "expedited RCU"
    else:
        why_not = f" ({printable(report.mode.rcu_why_not)})" if report.mode.rcu_why_not else ""
        rcu = f"no expedited RCU{why_not}"
    order = "filesystems of one level in parallel" if report.mode.parallel else "one filesystem after another"
    limit = duration_text(report.thaw_timeout_ms)
    window = "none" if report.window_ms is None else duration_text(report.window_ms)
    watchdog = f"pid {report.watchdog.pid}, " + (
        f"fired: {printable(report.watchdog.fired)}"
        if report.watchdog.fired
        else "did not have to act"
        if report.watchdog.released
        else "did not answer at the end"
    )
    command = report.command
    lines = [
        f"window    {window} (limit {limit}), {rcu}, {order}",
        f"watchdog  {watchdog}",
        *([f"command   {_command_text(command)}"] if command is not None else []),
        f"run       {printable(report.run_id)}, started {printable(report.started_at)}",
    ]
    return "".join(screen.fold(line, indent=" " * 10) + "\n" for line in lines)


def _command_text(command: CommandOutcome) -> str:
    took = duration_text(command.took_ms)
    end = (
        f"exit status {command.exit_status}"
        if command.exit_status is not None
        else f"signal {command.signal}"
    )
    words = {"ended": f"{end} after {took}", "too-late": f"killed after {took}", "not-run": "not run"}
    more = ", output cut off at 16 MiB" if command.output_is_truncated else ""
    return f"{printable(command.program)}: {words[command.outcome]}{more}"


def _run_row(run: RunStatus) -> list[Cell | str]:
    words, tone = _RUN_STATES[run.state]
    if run.state == "over" and run.fired is not None:
        words, tone = f"thawed by its watchdog ({run.fired})", Tone.DOUBTFUL
    return [
        run.run_id,
        _process(run.pid, run.alive),
        _process(run.watchdog_pid, run.watchdog_alive),
        Cell(words, tone),
    ]


def _process(pid: int | None, is_alive: bool | None) -> str:
    return "-" if pid is None else f"{pid} {'alive' if is_alive else 'gone'}"


def _is_folded(skipped: SkippedFilesystem) -> bool:
    # A filesystem that a pattern of the user excludes is always listed.
    return skipped.filesystem_type in PSEUDO_TYPES and skipped.reason != "excluded"


def _filesystems(count: int) -> str:
    return "1 filesystem" if count == 1 else f"{count} filesystems"


def _are(count: int) -> str:
    return "1 filesystem is" if count == 1 else f"{count} filesystems are"
