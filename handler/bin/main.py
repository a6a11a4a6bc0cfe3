"""Runs one command of the extension with the packages that it brings along.

`bin/handler` starts it, with ``-I -S``: the standard library is the system's, everything else is in ``lib``.
A process that the handler leaves behind is started in the same way::

    [sys.executable, "-I", "-S", "-X", "utf8", "<base dir>/bin/main.py", "<verb>"]

Bytecode is written by ``install`` only, which therefore imports what the later commands need. Elsewhere an
import that writes could meet a frozen filesystem, and wait for a thaw that its own process has to ask for.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit status."""
    sys.dont_write_bytecode = arguments[:1] != ["install"]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

    from vmsnapshot.handler import __main__ as handler

    return handler.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
