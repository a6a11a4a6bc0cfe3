"""The process behind `tests.support.silent_filesystem`: a FUSE server with one file, which can fall silent.

It runs as a script (``python -I -S silent_filesystem_process.py MOUNT_POINT CONTENT``) and needs only the
standard library. The file ``image`` has the content of CONTENT. It obeys the words on its standard input,
and ends with that input, or when its filesystem is unmounted. The kernel then fails every request that
still waits.

The numbers and structures are those of linux/fuse.h, in version 7.31 of the protocol.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import sys

VERSION = (7, 31)
ROOT_ID, FILE_ID = 1, 2
NAME = b"image"
MAX_WRITE_BYTES = 128 * 1024

LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 14, 15, 16, 17, 18, 20
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 34, 36, 38, 42
WITHOUT_ANSWER = (FORGET, INTERRUPT, BATCH_FORGET)

HEADER_IN = struct.Struct("=IIQQIIIHH")
HEADER_OUT = struct.Struct("=IiQ")


class Server:
    """Answers the kernel's requests."""

    def __init__(self, fuse: int, content: int) -> None:
        self.fuse = fuse
        self.content = content
        self.is_silent = False
        self.waiting: list[tuple[int, int]] = []
        """The id and the node of each GETATTR without an answer."""

    def serve_one(self) -> bool:
        """Reads a request, and answers it. Returns whether there may be another one."""
        try:
            request = os.read(self.fuse, MAX_WRITE_BYTES + 4096)
        except OSError as error:
            # ENOENT: the request was interrupted before it was read.
            return error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)
        _, operation, unique, node, *_ = HEADER_IN.unpack_from(request)
        if operation == GETATTR and self.is_silent:
            self.waiting.append((unique, node))
        elif operation not in WITHOUT_ANSWER:
            try:
                self.reply(unique, self.answer(operation, node, request[HEADER_IN.size :]))
            except OSError as error:
                self.reply(unique, b"", error.errno or errno.EIO)
        return bool(operation != DESTROY)

    def answer(self, operation: int, node: int, body: bytes) -> bytes:
        """Returns the body of the answer to a request. Raises `OSError` for one that fails."""
        if operation == INIT:
            # No flags, so the file's attributes are asked for each time.
            sizes = struct.pack("=IIHHIIHH8I", 0, 0, 16, 12, MAX_WRITE_BYTES, 1, 32, 0, *[0] * 8)
            return struct.pack("=II", *VERSION) + sizes
        if operation == LOOKUP:
            if node != ROOT_ID or body.rstrip(b"\0") != NAME:
                raise OSError(errno.ENOENT, "no such file")
            return struct.pack("=QQQQII", FILE_ID, 0, 3600, 0, 0, 0) + self.attributes(FILE_ID)
        if operation in (GETATTR, SETATTR):
            return struct.pack("=QII", 0, 0, 0) + self.attributes(node)
        if operation in (OPEN, OPENDIR):
            return struct.pack("=QII", 0, 0, 0)
        if operation == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return os.pread(self.content, size, offset)
        if operation == WRITE:
            _, offset, size = struct.unpack_from("=QQI", body)
            return struct.pack("=II", os.pwrite(self.content, body[40 : 40 + size], offset), 0)
        if operation == STATFS:
            return struct.pack("=5Q4I6I", 1 << 20, 1 << 20, 1 << 20, 100, 100, 4096, 255, 4096, 0, *[0] * 6)
        if operation in (RELEASE, FSYNC, FLUSH, READDIR, RELEASEDIR, ACCESS, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not supported")

    def attributes(self, node: int) -> bytes:
        """Returns ``struct fuse_attr`` of the root directory or of the file."""
        size = 0 if node == ROOT_ID else os.fstat(self.content).st_size
        mode = stat.S_IFDIR | 0o755 if node == ROOT_ID else stat.S_IFREG | 0o600
        return struct.pack("=6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def reply(self, unique: int, body: bytes, error: int = 0) -> None:
        """Sends an answer. The kernel refuses one to a request that it has given up."""
        try:
            os.write(self.fuse, HEADER_OUT.pack(HEADER_OUT.size + len(body), -error, unique) + body)
        except OSError as refusal:
            if refusal.errno != errno.ENOENT:
                raise

    def obey(self, word: str) -> str:
        """Does what a word on standard input says. Returns the line to print."""
        if word == "waiting":
            return str(len(self.waiting))
        self.is_silent = word == "silent"
        if not self.is_silent:
            for unique, node in self.waiting:
                self.reply(unique, self.answer(GETATTR, node, b""))
            self.waiting.clear()
        return word


def main() -> None:
    """Mounts and serves the filesystem."""
    mount_point, content = sys.argv[1:]
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = Server(fuse, os.open(content, os.O_RDWR | os.O_CLOEXEC))
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", os.fsencode(mount_point), b"fuse", 0, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), mount_point)
    os.write(1, b"mounted\n")
    while True:
        ready, _, _ = select.select([fuse, 0], [], [])
        if fuse in ready and not server.serve_one():
            return
        if 0 in ready:
            word = os.read(0, 64).decode().strip()
            if not word:
                return
            os.write(1, f"{server.obey(word)}\n".encode())


if __name__ == "__main__":
    main()
