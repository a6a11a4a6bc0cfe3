"""Small files that must be whole whenever somebody reads them: status, sequence number, task, settings.

Knows nothing of what they hold. Never called inside the window: the filesystem may be frozen.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Puts `text` at `path` as UTF-8, whole or not at all, with exactly `mode` whatever the umask.

    A reader sees the old file or the new one. It is not forced to disk, which takes seconds on a busy
    machine: when that crashes, the old file may come back, and on some filesystems an empty one is found.

    Raises:
        OSError: it could not be written; what was there before is still there, and nothing else is.
        UnicodeEncodeError: `text` cannot be UTF-8; likewise.
    """
    content = text.encode()
    # The agent reads `*.status` and `*.settings`: the name must not end like that. The number keeps apart two
    # commands that write the same file; `tempfile` does this too, and takes 6 ms to import.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_text(path: Path) -> str | None:
    """Returns what is in the file, none if there is no such file.

    Bytes that are not UTF-8 become U+FFFD and a byte order mark is dropped: a damaged file has a value that
    its reader will refuse, and is no reason to fail here.

    Raises:
        OSError: it is there, and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return content.decode("utf-8-sig", errors="replace")
