"""Reads and writes small files that a reader should find complete: status, sequence number, task, settings.

This module knows nothing about their content. Do not call it inside the window: the filesystem may be frozen.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

# No space or no inode, for everyone or for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Writes `text` to `path` as UTF-8, completely or not at all, with exactly `mode` whatever the umask is.

    A reader finds either the old file or the new one. The file is not synced, because that takes seconds on a
    busy machine. If the machine crashes, the old file may come back, and on some filesystems the file is
    empty.

    If the disk has no room for a second file, for example no free inode, an existing file is rewritten in
    place. For that moment a reader can find a part of it. The agent reads a damaged status again.

    Raises:
        OSError: it could not be written, and no temporary file is left. The old file is unchanged, unless it
            was being rewritten in place and the disk failed in the middle.
        UnicodeEncodeError: `text` cannot be encoded as UTF-8. Likewise.
    """
    content = text.encode()
    try:
        _replace(path, content, mode)
    except OSError as error:
        if error.errno not in _FULL or not _rewrite(path, content, mode):
            raise


def _replace(path: Path, content: bytes, mode: int) -> None:
    # The agent reads `*.status` and `*.settings`, so the temporary name must not end like that. The random
    # number separates two commands that write the same file. `tempfile` does the same, but takes 6 ms to
    # import.
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


def _rewrite(path: Path, content: bytes, mode: int) -> bool:
    """Rewrites an existing file. Returns False if that is not possible.

    Then the file is unchanged, unless a write failed after others had succeeded: the disk has an error, or
    its filesystem writes no block in place (btrfs) and has no room for a second one.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        size_bytes = os.fstat(descriptor).st_size
        try:
            # Fails before anything is overwritten if the disk has no room.
            os.posix_fallocate(descriptor, 0, max(1, len(content)))
            os.fchmod(descriptor, mode)
            left = content
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, size_bytes)
            return False
        os.ftruncate(descriptor, len(content))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def read_text(path: Path) -> str | None:
    """Returns the content of a file, or `None` if it does not exist.

    Bytes that are not UTF-8 become U+FFFD, and a byte order mark is removed. A damaged file thus has a value
    that its parser refuses, and raises nothing here.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return content.decode("utf-8-sig", errors="replace")
