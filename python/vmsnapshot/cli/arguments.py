"""The commands and options of the command line, and their help.

This module checks everything that the arguments alone can show, and turns them into valid values. An
argument may be a secret, for example a SAS URI in the wrong place. Therefore no message of this module
repeats a value.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from vmsnapshot.cli.blob_list import uri_defect
from vmsnapshot.errors import ArgumentsError

LONGEST_TIMEOUT_S = 3600.0
# Below this, the kernel's scheduling decides the result. The engine refuses it too.
SHORTEST_THAW_TIMEOUT_S = 0.01

# Both also percent-encoded, in any number of layers.
_URI_OR_SIGNATURE = re.compile(r"://|%(?:25)*3a%(?:25)*2f|sig(?:=|%(?:25)*3d)", re.IGNORECASE)

PATTERN_HELP = """\
patterns:
  A PATTERN selects filesystems in one of these ways:
    /data       by mount point
    /data*      by a glob; `*`, `?` and `[a-z]` do not cross a slash
    /srv/**     by a glob over mount points; `**` crosses slashes
    xfs         by type; globs work here too: ext*
    /dev/sdb1   by device
    8:17        by device number
  Write `mount=`, `device=` or `type=` in front to choose one of these. Quote
  globs, so that the shell does not expand them. An exclude pattern wins over
  an include pattern.
"""

MAIN_EPILOG = """\
exit status:
  snapshot  0 consistent and complete     1 something failed, all is thawed
            2 bad arguments               3 NOT THAWED
            130 interrupted, nothing was frozen
  plan      0 done                        1 the system could not be read
            2 bad arguments
  freeze    as snapshot; 0 also needs the command's own 0
  quiesce   0 every application passed    1 one did not
            2 bad arguments
  status    0 nothing is frozen           1 the state could not be read
            3 something is frozen
  thaw      0 no run has left anything frozen
            1 something was left alone    3 something is still frozen

examples:
  vmsnapshot plan
  vmsnapshot snapshot --blobs-from /run/secrets/disks --report /root/disks.json
  vmsnapshot status || vmsnapshot thaw

`vmsnapshot COMMAND --help` shows the options of a command.
"""

PLAN_EPILOG = (
    PATTERN_HELP
    + """
examples:
  vmsnapshot plan
  vmsnapshot plan --include '/data*' --exclude btrfs
  vmsnapshot plan --json | jq -r '.filesystems[].mount_point'
"""
)

SNAPSHOT_EPILOG = (
    PATTERN_HELP
    + """
SAS URIs:
  A SAS URI is a secret, and every user of the machine can read a command line:
  prefer --blobs-from. Its file has one URI per line (blank lines and lines that
  begin with # are skipped), or a JSON list of strings, or
  {"blobSASUri": [...]} as Azure Backup sends it. `-` is standard input.

proxy:
  Without --proxy and --no-proxy, the environment's https_proxy, http_proxy and
  no_proxy apply, and loopback hosts are reached directly. All blobs of a run
  use the same proxy.

examples:
  vmsnapshot snapshot --blobs-from /run/secrets/disks
  get-sas-uris | vmsnapshot snapshot --blobs-from - --mount '/data*' --json
  vmsnapshot snapshot --blobs-from disks --thaw-timeout 5 --metadata job=nightly

exit status:
  0    consistent and complete
  1    something failed, everything is thawed
  2    bad arguments, nothing was frozen
  3    NOT THAWED: run `vmsnapshot thaw`
  130  interrupted, nothing was frozen
"""
)

FREEZE_EPILOG = """\
The command is started before the freeze, and held until everything is frozen.
Its standard input is empty. Its output goes to memory, and is printed after
the thaw. When everything has to thaw, it is killed if it has not ended.

exit status:
  0 it ended with 0 while everything was frozen
  1 it failed, or something of the freeze did; everything is thawed
  2 bad arguments, 3 NOT THAWED, 130 interrupted, nothing was frozen

example:
  vmsnapshot freeze --mount /data -- aws ec2 create-snapshot --volume-id vol-1
"""

QUIESCE_EPILOG = """\
actions:
  check  connects to each APPLICATION and says what a run would refuse, and why
  test   holds each APPLICATION still once, in order, and releases it at once

exit status:
  0 every APPLICATION that is not optional passed
  1 one did not, or the system could not be read
  2 bad arguments, 130 interrupted
"""

STATUS_EPILOG = """\
The kernel cannot be asked whether a filesystem is frozen. This command shows
what runs of vmsnapshot have recorded in /run/vmsnapshot. It does not show a
freeze by another program.

exit status:
  0 nothing is frozen, 1 the state could not be read, 3 something is frozen
"""

THAW_EPILOG = """\
Thaws only what dead runs of vmsnapshot left frozen. Leaves alone a freeze by
another program and a freeze by a run that is still alive. Needs root.

exit status:
  0 no run of vmsnapshot has left anything frozen
  1 something was left alone, or no thaw was tried and nothing is frozen
  3 something is still frozen
"""


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ArgumentsError` with a message that repeats no value."""

    def error(self, message: str) -> NoReturn:
        """Raises the error that `argparse` found."""
        raise ArgumentsError(
            _without_values(message),
            code="bad-arguments",
            hint=f"`{self.prog} --help` shows the options and examples",
        )


def parse_arguments(arguments: Sequence[str] | None, version: str) -> argparse.Namespace:
    """Parses the command line. Prints help and exits on ``--help``.

    Raises:
        ArgumentsError: the command line is wrong.
    """
    return _parser(version).parse_args(arguments)


def parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """Splits ``NAME=VALUE`` strings.

    Raises:
        ArgumentsError: one of them has another form, or two have the same name.
    """
    metadata: dict[str, str] = {}
    for number, pair in enumerate(pairs, start=1):
        name, equals, value = pair.partition("=")
        if not equals:
            raise _bad_metadata(number, "is not NAME=VALUE")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise _bad_metadata(number, "has a name that the blob service does not accept")
        if not all(" " <= character <= "~" for character in value):
            raise _bad_metadata(number, "has a value that is not printable ASCII")
        if name.lower() in (known.lower() for known in metadata):
            raise _bad_metadata(number, "has the same name as an earlier one")
        metadata[name] = value
    return metadata


def _parser(version: str) -> _Parser:
    parser = _Parser(
        prog="vmsnapshot",
        description="Freezes this VM's filesystems, snapshots all its disk blobs at once, and thaws.",
        epilog=MAIN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vmsnapshot {version}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_snapshot(commands)
    _add_freeze(commands)
    _add_quiesce(commands)
    for name, summary, description, epilog in (
        ("status", "show what is frozen, and by which run", "Shows what is frozen.", STATUS_EPILOG),
        ("thaw", "thaw what dead runs left frozen", "Thaws what dead runs left frozen.", THAW_EPILOG),
    ):
        _add_json(_add_command(commands, name, summary, description, epilog))
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for the result of add_subparsers


def _add_command(
    commands: _Commands[_Parser], name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document for programs")


def _add_plan(commands: _Commands[_Parser]) -> None:
    command = _add_command(
        commands,
        "plan",
        "show what would be frozen, in which order, and what is skipped",
        "Shows what a snapshot would freeze, in which order, and what it would skip.\nChanges nothing.",
        PLAN_EPILOG,
    )
    command.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--include"),
        help="freeze only what a pattern selects; may be repeated",
    )
    _add_exclude(command)
    command.add_argument("--all", action="store_true", help="list memory and pseudo filesystems one by one")
    _add_json(command)


def _add_mount(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--mount"),
        help="freeze only what a pattern selects; may be repeated (default: everything that can be frozen)",
    )


def _add_exclude(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--exclude"),
        help="leave out what a pattern selects; may be repeated",
    )


def _add_snapshot(commands: _Commands[_Parser]) -> None:
    command = _add_command(
        commands,
        "snapshot",
        "freeze, snapshot every blob, thaw",
        "Freezes the filesystems, snapshots every blob at once, thaws, and reports.\nNeeds root.",
        SNAPSHOT_EPILOG,
    )
    blobs = command.add_mutually_exclusive_group(required=True)
    blobs.add_argument(
        "--blob",
        action="extend",
        nargs="+",
        metavar="SAS_URI",
        type=_blob_uri,
        help="the SAS URI of a disk, visible to every user; may be repeated",
    )
    blobs.add_argument(
        "--blobs-from",
        metavar="FILE",
        type=_NotAUri("--blobs-from"),
        help="read the SAS URIs from FILE, or from standard input if FILE is `-`",
    )
    _add_mount(command)
    _add_exclude(command)
    _add_applications(command)
    command.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="K=V",
        help="metadata of every snapshot; may be repeated",
    )
    _add_window(command)
    command.add_argument(
        "--call-timeout",
        metavar="SECONDS",
        default=10.0,
        type=_Seconds("--call-timeout"),
        help="time for a blob's service to answer, inside the freeze (default: 10; up to 3600)",
    )
    command.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        default=10.0,
        type=_Seconds("--connect-timeout"),
        help="time for connecting to the blobs, before the freeze (default: 10; up to 3600)",
    )
    command.add_argument(
        "--ca-file",
        metavar="PEM",
        type=_NotAUri("--ca-file"),
        help="trust these certificates in addition to the system's",
    )
    proxy = command.add_mutually_exclusive_group()
    proxy.add_argument("--proxy", metavar="URL", help="reach the blobs through this HTTP proxy")
    proxy.add_argument("--no-proxy", action="store_true", help="use no proxy, whatever the environment says")
    _add_report(command)
    _add_json(command)


class _Checked:
    """A type for `argparse`. It raises `ArgumentsError`, which `argparse` does not catch."""

    def __init__(self, option: str) -> None:
        self.option = option


class _NotAUri(_Checked):
    """Refuses a URI where a name is expected. It may be a SAS URI, and messages repeat the name."""

    def __call__(self, text: str) -> str:
        if _URI_OR_SIGNATURE.search(text):
            raise ArgumentsError(
                f"`{self.option}` does not take a URI",
                code="unexpected-uri",
                hint="pass SAS URIs with `--blobs-from FILE` or `--blob SAS_URI`",
            )
        if not text or "\0" in text:
            raise ArgumentsError(f"`{self.option}` is empty", code="bad-arguments")
        return text


class _Seconds(_Checked):
    """Accepts a number of seconds: from `least`, or above zero if `least` is `None`, up to an hour."""

    def __init__(self, option: str, *, least: float | None = None) -> None:
        super().__init__(option)
        self.least = least

    def __call__(self, text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        # NaN compares false with everything.
        is_long_enough = seconds > 0 if self.least is None else seconds >= self.least
        if is_long_enough and seconds <= LONGEST_TIMEOUT_S:
            return seconds
        least = "above 0" if self.least is None else f"from {self.least:g}"
        raise ArgumentsError(
            f"`{self.option}` is not a number of seconds {least} and up to {LONGEST_TIMEOUT_S:.0f}",
            code="timeout-out-of-range",
        )


def _blob_uri(text: str) -> str:
    uri = text.strip()
    defect = uri_defect(uri)
    if defect is not None:
        raise ArgumentsError(f"a URI of `--blob` {defect}", code="bad-uri")
    return uri


def _bad_metadata(number: int, defect: str) -> ArgumentsError:
    return ArgumentsError(
        f"`--metadata` number {number} {defect}",
        code="bad-metadata",
        hint="write NAME=VALUE; the name has letters, digits and underscores and does not begin with a digit",
    )


def _without_values(message: str) -> str:
    # argparse repeats the arguments in its messages. Only messages that are known to contain nothing but
    # option names pass. All others are replaced.
    if message.startswith("unrecognized arguments"):
        names = sorted(set(re.findall(r"(?<=\s)--?[A-Za-z][A-Za-z-]{0,30}(?=[\s=]|$)", message)))
        listed = ", ".join(f"`{name}`" for name in names)
        return f"unknown options: {listed}" if names else "there are too many arguments"
    if message == "the following arguments are required: COMMAND":
        return "the command is missing: plan, snapshot, status or thaw"
    if "invalid choice" in message:
        return "unknown command: the commands are plan, snapshot, status and thaw"
    if "explicit argument" in message:
        return "an option that takes no value has one"
    if re.fullmatch(
        r"(argument [-a-zA-Z/ ]+: (expected (one|at least one) argument|not allowed with argument [-a-z]+)"
        r"|(the following arguments are|one of the arguments [-a-z ]+ is) required(: [A-Za-z, -]+)?)",
        message,
    ):
        return message
    return "the arguments could not be parsed"


def wants_json(arguments: Sequence[str] | None) -> bool:
    """Returns whether a command line that could not be parsed asks for JSON."""
    return "--json" in (sys.argv[1:] if arguments is None else arguments)


def _add_quiesce(commands: _Commands[_Parser]) -> None:
    command = _add_command(
        commands,
        "quiesce",
        "rehearse holding applications still, without a freeze",
        "Rehearses holding applications still. Freezes nothing.",
        QUIESCE_EPILOG,
    )
    command.add_argument("action", choices=("check", "test"), metavar="ACTION", help="`check` or `test`")
    command.add_argument("applications", nargs="+", metavar="APPLICATION", help="as for `snapshot --quiesce`")
    _add_mount(command)
    _add_exclude(command)
    _add_json(command)


def _add_freeze(commands: _Commands[_Parser]) -> None:
    command = _add_command(
        commands,
        "freeze",
        "freeze, run a command, thaw",
        "Freezes the filesystems, runs a command, thaws, and reports.\nNeeds root.",
        FREEZE_EPILOG,
    )
    _add_mount(command)
    _add_exclude(command)
    _add_applications(command)
    _add_window(command)
    _add_report(command)
    _add_json(command)
    command.add_argument(
        "words",
        nargs="+",
        metavar="COMMAND",
        help="the program and its arguments, after `--`; it must not write to a frozen filesystem",
    )


def _add_applications(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quiesce",
        action="append",
        default=[],
        metavar="APPLICATION",
        help="hold an application still during the freeze, as KIND or KIND:KEY=VALUE,...; may be repeated",
    )


def _add_window(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--thaw-timeout",
        metavar="SECONDS",
        default=10.0,
        type=_Seconds("--thaw-timeout", least=SHORTEST_THAW_TIMEOUT_S),
        help="thaw everything after this time at the latest (default: 10; 0.01 to 3600)",
    )
    command.add_argument(
        "--freeze-timeout",
        metavar="SECONDS",
        default=5.0,
        type=_Seconds("--freeze-timeout", least=SHORTEST_THAW_TIMEOUT_S),
        help="thaw and give up if not everything is frozen after this time (default: 5; 0.01 to 3600)",
    )
    command.add_argument(
        "--sync-timeout",
        metavar="SECONDS",
        default=30.0,
        type=_Seconds("--sync-timeout", least=0.0),
        help="time for writing dirty data back, before the freeze; 0 skips it (default: 30; up to 3600)",
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-expedite-rcu",
        dest="expedite_rcu",
        action="store_false",
        help="leave /sys/kernel/rcu_expedited alone; the window is then about 20 to 60 ms longer",
    )
    command.add_argument(
        "--report",
        metavar="FILE",
        type=_NotAUri("--report"),
        help="also write the report to FILE as JSON, atomically and readable by its owner only",
    )
