"""A filesystem that stops answering, as one of a dead server does: FUSE, with one file.

Its program is `silent_filesystem_process`. Once it is silent, a GETATTR waits in the kernel, and no
signal ends the process that waits. Reads and writes are still answered, so a filesystem on a loop device
over its file goes on working.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support import processes
from tests.support.filesystems import ScratchFilesystems
from tests.support.mounts import mounts_below

_PROGRAM = Path(__file__).with_name("silent_filesystem_process.py")
_SIZE_BYTES = 64 << 20
FILE_NAME = "image"


class SilentFilesystem:
    """The FUSE filesystem, with `FILE_NAME` in it. It answers until `fall_silent`.

    Use it as a context manager. At its end the server ends, and with it every request that still waits.
    """

    def __init__(self, mount_point: Path, content: Path) -> None:
        self.mount_point = mount_point
        self._server = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM), str(mount_point), str(content)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._expect(b"mounted\n")

    def fall_silent(self) -> None:
        """Leaves every GETATTR from now on without an answer."""
        self._send(b"silent\n")

    def answer(self) -> None:
        """Answers again, also what has waited since."""
        self._send(b"answer\n")

    def waiting(self) -> int:
        """Returns how many GETATTRs have no answer."""
        return int(self._send(b"waiting\n"))

    def close(self) -> None:
        """Ends the server. The kernel then fails everything that waits for it."""
        if not processes.kill(self._server):
            raise RuntimeError("the FUSE server does not end")
        if mounts_below(self.mount_point):
            processes.run_bounded(["umount", "--lazy", self.mount_point])

    def __enter__(self) -> SilentFilesystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, line: bytes) -> bytes:
        if self._server.poll() is not None:
            raise RuntimeError("the FUSE server has ended")
        assert self._server.stdin is not None
        self._server.stdin.write(line)
        self._server.stdin.flush()
        return self._expect()

    def _expect(self, line: bytes | None = None) -> bytes:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        if not answer or (line is not None and answer != line):
            processes.kill(self._server)
            raise RuntimeError("the FUSE server does not work")
        return answer


@contextlib.contextmanager
def ext4_inside_a_silent_filesystem(
    scratch: ScratchFilesystems, name: str
) -> Iterator[tuple[Path, SilentFilesystem]]:
    """Yields the mount point of an ext4 on a loop device, and the filesystem of that device's file.

    Once that is silent, the device never answers where its file lies. The filesystem is detached, so the
    device's path does not show it: it names a file of ``/``. Make other loop devices before it is silent,
    because ``losetup`` and ``mkfs`` ask all that there are.
    """
    content = scratch.directory / f"{name}.content"
    with content.open("xb") as file:
        file.truncate(_SIZE_BYTES)
    processes.run_bounded(["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", content])
    mount_point, served = scratch.directory / name, scratch.directory / f"{name}.fuse"
    mount_point.mkdir()
    served.mkdir()
    with SilentFilesystem(served, content) as server, contextlib.ExitStack() as stack:
        # The device is detached with the unmount.
        processes.run_bounded(["mount", "-o", "loop", served / FILE_NAME, mount_point])
        stack.callback(_unmount, mount_point, server)
        device = Path(processes.run_bounded(["findmnt", "-n", "-o", "SOURCE", mount_point]).strip())
        processes.run_bounded(["umount", "--lazy", served])
        assert Path(f"/sys/block/{device.name}/loop/backing_file").read_text() == f"/{FILE_NAME}\n"
        yield mount_point, server


def _unmount(mount_point: Path, server: SilentFilesystem) -> None:
    try:
        server.answer()
        processes.run_bounded(["umount", mount_point], limit_seconds=10.0)
    except (RuntimeError, processes.CommandError):
        # Without a server, nothing waits any more.
        server.close()
        processes.run_bounded(["umount", mount_point], limit_seconds=10.0)
