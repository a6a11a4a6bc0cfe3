"""The command line's commands and options, and the help that teaches them.

Checks what can be known from the arguments alone and turns it into values that cannot be wrong. Arguments may
be secrets (a SAS URI in the wrong place, metadata), so no message of this file repeats a value.
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
# Below it the kernel's own scheduling decides; the engine refuses it too.
SHORTEST_THAW_TIMEOUT_S = 0.01

PATTERN_HELP = """\
patterns:
  A PATTERN names filesystems in one of these ways:
    /data       what is mounted there
    /data*      a glob; `*`, `?` and `[a-z]` do not cross a slash
    /srv/**     a glob over mount points; `**` crosses slashes
    xfs         every filesystem of that type; globs work here too: ext*
    /dev/sdb1   what lies on that device
    8:17        the same, by device number
  `mount=`, `device=` and `type=` before it say which of these is meant. Quote
  globs, so that the shell does not expand them. What an exclude pattern names
  is left out, also when another pattern includes it.
"""

MAIN_EPILOG = """\
exit status:
  snapshot  0 consistent and complete     1 something failed, all is thawed
            2 bad arguments               3 NOT THAWED
            130 interrupted, nothing was frozen
  plan      0 done                        1 the system could not be read
            2 bad arguments
  status    0 nothing is frozen           1 it could not be told
            3 something is frozen
  thaw      0 nothing of ours is frozen   1 something was left alone
            3 something is still frozen

examples:
  vmsnapshot plan
  vmsnapshot snapshot --blobs-from /run/secrets/disks --report /root/disks.json
  vmsnapshot status || vmsnapshot thaw

`vmsnapshot COMMAND --help` says more.
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
  prefer --blobs-from. Its file holds one URI a line (blank lines and lines that
  begin with # are passed over), or a JSON list of texts, or
  {"blobSASUri": [...]} as Azure Backup sends it. `-` is standard input.

proxy:
  Without --proxy and --no-proxy, https_proxy, http_proxy and no_proxy of the
  environment are used; hosts on the loopback are then reached directly. One
  proxy serves all blobs of a run.

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

STATUS_EPILOG = """\
The kernel cannot be asked whether a filesystem is frozen: this shows what runs
of vmsnapshot wrote down in /run/vmsnapshot, and no freeze by another program.

exit status:
  0 nothing is frozen, 1 it could not be told, 3 something is frozen
"""

THAW_EPILOG = """\
Touches only what runs of vmsnapshot froze that are no longer alive; a freeze by
another program, or by a run that is still at work, is left alone. Needs root.

exit status:
  0 nothing of ours is frozen any more
  1 something was left alone, or nothing could be tried and nothing is frozen
  3 something is still frozen
"""


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ArgumentsError`, and repeats no value in it."""

    def error(self, message: str) -> NoReturn:
        """Raises what `argparse` found."""
        raise ArgumentsError(
            _without_values(message),
            code="bad-arguments",
            hint=f"`{self.prog} --help` shows the options and examples",
        )


def parse_arguments(arguments: Sequence[str] | None, version: str) -> argparse.Namespace:
    """Understands the command line; prints help and exits when asked for it.

    Raises:
        ArgumentsError: the command line is wrong.
    """
    return _parser(version).parse_args(arguments)


def parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """Takes ``NAME=VALUE`` texts apart.

    Raises:
        ArgumentsError: one of them is not of that form, or two have the same name.
    """
    metadata: dict[str, str] = {}
    for number, pair in enumerate(pairs, start=1):
        name, equals, value = pair.partition("=")
        if not equals:
            raise _bad_metadata(number, "is not NAME=VALUE")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise _bad_metadata(number, "has a name that the blob service does not take")
        if not all(" " <= character <= "~" for character in value):
            raise _bad_metadata(number, "has a value that is not printable ASCII")
        if name.lower() in (known.lower() for known in metadata):
            raise _bad_metadata(number, "has the name of an earlier one")
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
    for name, summary, description, epilog in (
        ("status", "what is frozen, by which run, since when", "Shows what is frozen.", STATUS_EPILOG),
        ("thaw", "thaw what a run left frozen", "Thaws what dead runs left frozen.", THAW_EPILOG),
    ):
        _add_json(_add_command(commands, name, summary, description, epilog))
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


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
        "what would be frozen, in which order, and what is skipped",
        "Shows what a snapshot would freeze, in which order, and what it would skip.\nTouches nothing.",
        PLAN_EPILOG,
    )
    command.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--include"),
        help="freeze only what a pattern names; may be repeated",
    )
    _add_exclude(command)
    command.add_argument("--all", action="store_true", help="list memory and pseudo filesystems one by one")
    _add_json(command)


def _add_exclude(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--exclude"),
        help="leave out what a pattern names; may be repeated",
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
        help="a disk's SAS URI, visible to every user; may be repeated",
    )
    blobs.add_argument(
        "--blobs-from",
        metavar="FILE",
        type=_NotAUri("--blobs-from"),
        help="read the SAS URIs from FILE, or from standard input when it is `-`",
    )
    command.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATTERN",
        type=_NotAUri("--mount"),
        help="freeze only what a pattern names; may be repeated (default: everything that can be frozen)",
    )
    _add_exclude(command)
    command.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="K=V",
        help="metadata for every snapshot; may be repeated",
    )
    command.add_argument(
        "--thaw-timeout",
        metavar="SECONDS",
        default=10.0,
        type=_Seconds("--thaw-timeout", least=SHORTEST_THAW_TIMEOUT_S),
        help="everything is thawed after this time at the latest (default: 10; 0.01 to 3600)",
    )
    command.add_argument(
        "--connect-timeout",
        metavar="SECONDS",
        default=10.0,
        type=_Seconds("--connect-timeout"),
        help="time to reach the blobs, before the freeze (default: 10; up to 3600)",
    )
    command.add_argument(
        "--sync-timeout",
        metavar="SECONDS",
        default=30.0,
        type=_Seconds("--sync-timeout", least=0.0),
        help="time to write dirty data back before the freeze; 0 leaves that out (default: 30; up to 3600)",
    )
    command.add_argument(
        "--ca-file",
        metavar="PEM",
        type=_NotAUri("--ca-file"),
        help="trust these certificates too, beside the system's",
    )
    proxy = command.add_mutually_exclusive_group()
    proxy.add_argument("--proxy", metavar="URL", help="reach the blobs through this HTTP proxy")
    proxy.add_argument("--no-proxy", action="store_true", help="go direct, whatever the environment says")
    command.add_argument(
        "--no-expedite-rcu",
        dest="expedite_rcu",
        action="store_false",
        help="leave /sys/kernel/rcu_expedited alone; the window is then some 20 to 60 ms longer",
    )
    command.add_argument(
        "--report",
        metavar="FILE",
        type=_NotAUri("--report"),
        help="write the report as JSON to FILE too, atomically, readable by its owner only",
    )
    _add_json(command)


class _Checked:
    """What `argparse` calls on an option's text; it raises `ArgumentsError`, which `argparse` lets pass."""

    def __init__(self, option: str) -> None:
        self.option = option


class _NotAUri(_Checked):
    """Refuses a URI where a name is wanted: it would be a SAS URI, and the name is repeated in messages."""

    def __call__(self, text: str) -> str:
        if "://" in text or "sig=" in text:
            raise ArgumentsError(
                f"`{self.option}` does not take a URI",
                code="unexpected-uri",
                hint="SAS URIs are given by `--blobs-from FILE` or `--blob SAS_URI`",
            )
        if not text or "\0" in text:
            raise ArgumentsError(f"`{self.option}` is empty", code="bad-arguments")
        return text


class _Seconds(_Checked):
    """Takes a length of time in seconds: from `least`, or above zero where there is none, up to an hour."""

    def __init__(self, option: str, *, least: float | None = None) -> None:
        super().__init__(option)
        self.least = least

    def __call__(self, text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        # A NaN compares false with everything.
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
        hint="give NAME=VALUE, the name of letters, digits and underscores and not beginning with a digit",
    )


def _without_values(message: str) -> str:
    # argparse puts what was given into its messages. Only those that are known to hold nothing but names of
    # options pass; the others are said anew.
    if message.startswith("unrecognized arguments"):
        names = sorted(set(re.findall(r"(?<=\s)--?[A-Za-z][A-Za-z-]{0,30}(?=[\s=]|$)", message)))
        listed = ", ".join(f"`{name}`" for name in names)
        return f"unknown options: {listed}" if names else "there is an argument too many"
    if message == "the following arguments are required: COMMAND":
        return "there is no command: give plan, snapshot, status or thaw"
    if "invalid choice" in message:
        return "no such command: there are plan, snapshot, status and thaw"
    if "explicit argument" in message:
        return "an option that takes no value was given one"
    if re.fullmatch(
        r"(argument [-a-zA-Z/ ]+: (expected (one|at least one) argument|not allowed with argument [-a-z]+)"
        r"|(the following arguments are|one of the arguments [-a-z ]+ is) required(: [A-Za-z, -]+)?)",
        message,
    ):
        return message
    return "the arguments could not be understood"


def wants_json(arguments: Sequence[str] | None) -> bool:
    """Tells whether a command line that could not be understood asked for JSON."""
    return "--json" in (sys.argv[1:] if arguments is None else arguments)
