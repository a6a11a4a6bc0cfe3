"""Runs one command of the extension with its bundled packages.

`bin/handler` starts it with ``-I -S``. The standard library is that of the system, and everything else is in
``lib``. The handler starts its other processes in the same way::

    [sys.executable, "-I", "-S", "-X", "utf8", "<base dir>/bin/main.py", "<verb>"]

Only ``install`` writes bytecode. Therefore it imports everything that later commands need. In other commands,
an import that writes could block on a frozen filesystem, and wait for a thaw that its own process has to
start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit status."""
    # The caller's may be 0. Then anybody could write into the directories of the bytecode that root runs.
    os.umask(0o022)
    sys.dont_write_bytecode = arguments[:1] != ["install"]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

    try:
        from vmsnapshot.handler import __main__ as handler

        return handler.main(arguments)
    except KeyboardInterrupt:
        # From a person who runs a command by hand. The agent does not send it.
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
