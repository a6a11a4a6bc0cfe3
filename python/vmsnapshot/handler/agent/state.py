"""What the handler records between two commands: sequence number, task, machine, and its workers.

The names and contents of the files are those of the reference (contract 0.4), so that one extension can
replace the other on a VM. All files lie in the directory of the extension, which is deleted with its version.
`carry_over` copies them. All are written atomically, or in place if the disk is full. A write that fails
returns False instead of raising: the backup goes on.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmsnapshot.handler.files import read_bytes, read_text, write_atomically
from vmsnapshot.handler.machine.processes import ProcessName

SEQUENCE_FILE = "mrseq"
TASK_FILE = "task_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C"
MACHINE_FILE = "machine_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C"
# The suffix differs in the last digits.
UNIQUE_MACHINE_FILE = Path("/etc/azure/machine_identity_FD76C85E-406F-4CFA-8EB0-CF18B123358B")

_CARRIED_OVER = (SEQUENCE_FILE, TASK_FILE, MACHINE_FILE)
_WORKERS = "workers"
_ROLE_GUID = re.compile(r"<Role\b[^>]*?\bguid\s*=\s*[\"']([^\"']*)[\"']")


@dataclass(frozen=True)
class WorkerRecord:
    """The record of a job that was started and not yet reported, to both the agent and the status blob.

    It is written before the job starts. The process that reports the job removes it. If that process is gone,
    it was killed, and the job still needs a report.
    """

    path: Path
    sequence_number: int
    process: ProcessName | None
    """The process that will report the job. `None` if the record is damaged, for example after a crash."""
    task_id: str | None

    def is_running(self) -> bool:
        """Returns whether the process is still alive."""
        return self.process is not None and self.process.is_alive()

    def forget(self) -> None:
        """Removes the record."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class State:
    """The recorded state in one directory of the extension."""

    def __init__(
        self,
        base_directory: Path,
        lib_directory: Path,
        *,
        unique_machine_file: Path = UNIQUE_MACHINE_FILE,
    ) -> None:
        self._base = base_directory
        self._lib = lib_directory
        self._unique_machine_file = unique_machine_file

    @property
    def last_sequence_number(self) -> int | None:
        """The number of the last job that was started. `None` if there is none, or if it is invalid (-1)."""
        text = self._read(SEQUENCE_FILE).strip()
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) else None

    def remember_sequence_number(self, number: int) -> bool:
        """Records that this job was started. Call this before anything that must not happen twice."""
        return self._write(SEQUENCE_FILE, str(number))

    @property
    def last_task_id(self) -> str | None:
        """The task id of the last job, or `None`."""
        return self._read(TASK_FILE) or None

    def remember_task_id(self, task_id: str) -> bool:
        """Records the task id of the job that starts."""
        return self._write(TASK_FILE, task_id)

    def notice_restore(self) -> bool:
        """Returns whether this VM was restored from the disks of another VM, and records the new identity.

        In that case the recorded sequence number and task belong to the other VM, and are forgotten. Call
        this before the number is compared.
        """
        current = self._role_guid
        stored = _read(self._base / MACHINE_FILE)
        if stored == current or (stored and not current):
            # An unreadable configuration does not mean another machine.
            return False
        if stored:
            # The disks were snapshotted during that job. The other VM reports it.
            for record in self.workers():
                record.forget()
            self._write(SEQUENCE_FILE, "-1")
            self._write(TASK_FILE, "")
        # Last, so that the next command notices the restore too if this one is killed.
        self._write(MACHINE_FILE, current)
        return bool(stored)

    def unique_machine_id(self) -> str:
        """Returns the VM's identity for the status: the GUID of the role without braces, or "" if unknown."""
        current = self._role_guid
        if current:
            text = current[1:-1] if current.startswith("{") else current
            if self._published_machine_id() != text:
                with contextlib.suppress(OSError):
                    write_atomically(self._unique_machine_file, text, 0o644)
            return text
        published = self._published_machine_id()
        return published or self._read(MACHINE_FILE)[1:-1]

    @property
    def workers_directory(self) -> Path:
        """The directory of the records. The first record makes it."""
        return self._base / _WORKERS

    def workers(self) -> list[WorkerRecord]:
        """Returns the records of all workers that have not reported, whether they are running or killed."""
        try:
            paths = sorted(self.workers_directory.glob("*.json"))
        except OSError:
            return []
        return [record for record in map(_read_record, paths) if record is not None]

    def record_worker(self, sequence_number: int, process: ProcessName | None, task_id: str | None) -> bool:
        """Records the process that will report a job, so that a later command notices if it was killed."""
        directory = self.workers_directory
        document: dict[str, object] = {"taskId": task_id}
        if process is not None:
            document.update(pid=process.pid, startTicks=process.start_ticks, bootId=process.boot_id)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            write_atomically(directory / f"{sequence_number}.json", json.dumps(document))
        except OSError:
            return False
        return True

    def forget_worker(self, sequence_number: int, process: ProcessName | None) -> None:
        """Removes the record of a job after this process has reported it."""
        for record in self.workers():
            if record.sequence_number == sequence_number and record.process == process:
                record.forget()

    def _read(self, name: str) -> str:
        return _read(self._base / name)

    def _write(self, name: str, text: str) -> bool:
        try:
            write_atomically(self._base / name, text)
        except OSError:
            return False
        return True

    @cached_property
    def _role_guid(self) -> str:
        found = _ROLE_GUID.search(_read(self._lib / "HostingEnvironmentConfig.xml"))
        return found[1] if found else ""

    def _published_machine_id(self) -> str:
        return _read(self._unique_machine_file).partition("\n")[0].strip()


def carry_over(source: Path, target: Path) -> list[str]:
    """Copies the state from the directory of one version to that of another. Returns the names of the files.

    The agent has already copied the sequence number, with its times. Existing files of the target stay.

    Raises:
        OSError: a file could not be copied.
    """
    carried = []
    for name in _CARRIED_OVER:
        if (source / name).is_file() and not (target / name).exists():
            _copy(source / name, target / name)
            carried.append(name)
    # Jobs that still need a report.
    for record in sorted((source / _WORKERS).glob("*.json")):
        (target / _WORKERS).mkdir(mode=0o700, exist_ok=True)
        _copy(record, target / _WORKERS / record.name)
    return carried


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, read_bytes(source).decode(errors="replace"))


def _read(path: Path) -> str:
    """Returns the content of a file, or "" if it cannot be read."""
    try:
        return read_text(path) or ""
    except OSError:
        return ""


def siblings(base_directory: Path) -> list[Path]:
    """Returns the directories of other versions of this extension, the last modified first."""
    prefix = base_directory.name.rpartition("-")[0] + "-"
    others = [
        path for path in base_directory.parent.glob(f"{prefix}*") if path != base_directory and path.is_dir()
    ]
    return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _read_record(path: Path) -> WorkerRecord | None:
    if not path.stem.isdigit():
        return None
    process = task_id = None
    # The file name of a damaged record still names its job.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        document = json.loads(read_bytes(path))
        task_id = document["taskId"]
        process = ProcessName(int(document["pid"]), int(document["startTicks"]), str(document["bootId"]))
    return WorkerRecord(path, int(path.stem), process, task_id if isinstance(task_id, str) else None)
