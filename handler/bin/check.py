"""Checks whether this Python can run the extension: exits with 0, or prints why not and exits with 1.

Every Python 3 must be able to parse this file, so that the answer is "too old" and not a syntax error. It
loads the compiled modules instead of searching for them, because the system library of a module may be
missing.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 9):  # noqa: UP036 (this is what it is for)
    sys.exit("Python %d.%d is too old" % sys.version_info[:2])  # noqa: UP031 (older than f-strings)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))

try:
    # A manually compiled Python often lacks these.
    import _ssl  # noqa: F401
    import select  # noqa: F401
    import zlib  # noqa: F401

    # Fails if the C library is older than that of the build, or if files must not be executed.
    import vmsnapshot  # noqa: F401
except Exception as error:
    sys.exit("%s: %s" % (type(error).__name__, error))  # noqa: UP031 (as above)
