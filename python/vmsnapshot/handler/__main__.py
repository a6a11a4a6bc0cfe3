"""One process of the handler: a command of the agent, or a process that a command starts.

A command must be quick. Therefore each verb imports its own slow or rarely needed modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import vmsnapshot
from vmsnapshot.handler import commands
from vmsnapshot.handler.agent.environment import find_base_directory

USAGE = 2
# For people on the VM, where the command line is not installed: show what is frozen, and thaw it.
OPERATOR_VERBS = ("status", "thaw")


def main(arguments: Sequence[str]) -> int:
    """Runs one verb and returns its exit status, which does not depend on the outcome of a backup."""
    verb = arguments[0] if len(arguments) == 1 else ""
    base_directory = find_base_directory(os.environ)
    if verb in commands.COMMANDS:
        return commands.run(verb, base_directory, os.environ)
    if verb in ("worker", "mend"):
        from vmsnapshot.handler.worker import run_mending, run_worker

        if verb == "worker":
            run_worker(base_directory, os.environ)
        else:
            run_mending(base_directory, os.environ)
        _exit(0)
    if verb == "poll":
        from vmsnapshot.handler.polling import run_polling

        _exit(run_polling(base_directory, os.environ))
    if verb in OPERATOR_VERBS:
        from vmsnapshot import cli

        return cli.main([verb])
    print(f"usage: bin/handler {' | '.join((*commands.COMMANDS, *OPERATOR_VERBS))}", file=sys.stderr)
    return USAGE


def _exit(status: int) -> NoReturn:
    vmsnapshot.leave_control_group()
    # Not `return`: a thread that hangs in the resolver or on a dead disk must not keep this process alive.
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
