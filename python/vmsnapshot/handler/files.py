"""Opens, reads and writes the small files of the handler: settings, configuration, status, state, logs.

Every file that the handler opens by its name is opened here, except those in /proc and /sys. The handler
runs as root, and that name may belong to something that is not a file. These rules prevent a command from
waiting forever, from filling the memory and from writing to the target of somebody's link:

* Only a regular file is opened. A named pipe, a socket and a device are refused before they are opened: an
  open may wait, and for some devices it has an effect.
* A symbolic link in the place of the file is refused. The directories above it may be links. What the owner
  of the VM configures may be a link to a regular file (`follows_link`): configuration tools make them.
* At most `LIMIT_BYTES` are read.

This module knows nothing about the content. Do not call it inside the window: the filesystem may be frozen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 4 * 1024 * 1024
"""The longest file that is read. The files of the agent and of the owner have some thousand bytes, and the
settings of a VM with many disks some ten thousand."""

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
        descriptor = open_existing(path, os.O_WRONLY)
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


def open_existing(path: Path, flags: int, *, follows_link: bool = False) -> int:
    """Opens a regular file with `flags` and returns its descriptor, which a child does not inherit.

    Raises:
        OSError: there is no file of this name, it is not a regular file, or it cannot be opened.
    """
    # O_PATH finds the file without opening it. What is opened afterwards is what was looked at, even if the
    # name stands for something else by then.
    place = os.open(path, os.O_PATH | (0 if follows_link else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        # Not blocking, because the file may have a lease.
        return os.open(f"/proc/self/fd/{place}", flags | os.O_NONBLOCK)
    finally:
        os.close(place)


def open_or_create(path: Path, flags: int) -> int:
    """Opens a regular file as `open_existing` does, or makes an empty one that only its owner can read.

    Raises:
        OSError: it is not a regular file, or it can be neither opened nor created.
    """
    try:
        return open_existing(path, flags)
    except FileNotFoundError:
        pass
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        # Another process was faster.
        return open_existing(path, flags)


def read_limited(file: BinaryIO) -> bytes:
    """Returns the rest of an open file.

    Raises:
        OSError: it is longer than `LIMIT_BYTES`, or it cannot be read.
    """
    content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"it is longer than {LIMIT_BYTES} bytes")
    return content


def read_bytes(path: Path, *, follows_link: bool = False) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: there is no such file, it is not a regular file, it is too long, or it cannot be read.
    """
    with os.fdopen(open_existing(path, os.O_RDONLY, follows_link=follows_link), "rb") as file:
        return read_limited(file)


def read_text(path: Path) -> str | None:
    """Returns the content of a file, or `None` if it does not exist.

    Bytes that are not UTF-8 become U+FFFD, and a byte order mark is removed. A damaged file thus has a value
    that its parser refuses, and raises nothing here.

    Raises:
        OSError: the file exists and cannot be read. As `read_bytes`.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    return content.decode("utf-8-sig", errors="replace")
