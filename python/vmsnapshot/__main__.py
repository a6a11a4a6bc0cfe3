"""The command ``vmsnapshot``, and ``python -m vmsnapshot``.

This module imports nothing before `main`. Importing the rest takes a tenth of a second. If Ctrl-C comes
then, or the memory does not suffice, the command must still end with an error instead of a traceback.
"""

from __future__ import annotations

import sys

FAILED = 1
NOT_THAWED = 3
INTERRUPTED = 130


def main() -> int:
    """Runs the command and returns its exit status."""
    try:
        from vmsnapshot.cli import main as run
    except KeyboardInterrupt:
        return _fail("interrupted", "interrupted; nothing was frozen", "null", INTERRUPTED)
    except (MemoryError, ImportError, OSError, SystemError) as error:
        # Only the name, because the text of an ImportError contains a path in any bytes.
        return _fail(
            "not-loaded",
            f"vmsnapshot could not be loaded ({type(error).__name__}); this command changed nothing",
            '"raise the limits on memory and open files, or install vmsnapshot again"',
            # Something may be frozen, and this process cannot find out.
            NOT_THAWED if sys.argv[1:2] == ["thaw"] else FAILED,
        )
    return run()


def _fail(code: str, message: str, hint: str, status: int) -> int:
    """Writes an error as the command does, without its modules. All texts are ASCII, and `hint` is JSON."""
    import os

    document = f'{{"error": {{"code": "{code}", "message": "{message}", "hint": {hint}}}}}\n'
    texts = [(2, f"vmsnapshot: error: {message}\n")]
    if "--json" in sys.argv[1:]:
        texts.append((1, document))
    for descriptor, text in texts:
        try:
            os.write(descriptor, text.encode())
        except OSError:
            # The stream is closed or full, and there is no other to report that on.
            continue
    return status


if __name__ == "__main__":
    sys.exit(main())
