"""What the handler remembers between two commands: sequence number, task, machine, and its workers.

The files' names and contents are the reference's (contract 0.4), so that one extension can follow the other
on a VM. All lie in the extension's directory, which vanishes with its version: `carry_over` takes them along.
All are written atomically. What cannot be written, on a full disk say, is told to the caller as False: it is
no reason not to back up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmsnapshot.handler.files import read_text, write_atomically
from vmsnapshot.handler.machine.processes import ProcessName

SEQUENCE_FILE = "mrseq"
TASK_FILE = "task_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C"
MACHINE_FILE = "machine_identity_FD76C85E-406F-4CFA-8EB0-CF18B123365C"
# Its suffix differs in the last digits.
UNIQUE_MACHINE_FILE = Path("/etc/azure/machine_identity_FD76C85E-406F-4CFA-8EB0-CF18B123358B")

_CARRIED_OVER = (SEQUENCE_FILE, TASK_FILE, MACHINE_FILE)
_WORKERS = "workers"
_ROLE_GUID = re.compile(r"<Role\b[^>]*?\bguid\s*=\s*[\"']([^\"']*)[\"']")


@dataclass(frozen=True)
class WorkerRecord:
    """A job that was begun and is not known to be reported, to the agent and to the status blob.

    It is written before the job is, and removed by the process that has reported it. If that process is gone,
    it was killed, and the job is still to be reported.
    """

    path: Path
    sequence_number: int
    process: ProcessName | None
    """Who is to report it; none where the record cannot be read, after a crash of the machine say."""
    task_id: str | None

    def is_running(self) -> bool:
        """Whether the process still lives."""
        return self.process is not None and self.process.is_alive()

    def forget(self) -> None:
        """Removes the record."""
        with contextlib.suppress(OSError):
            self.path.unlink()


class State:
    """The remembered things of one extension directory."""

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
        """The number of the last job that was begun; none if there is none, or it is not ours (-1)."""
        text = self._read(SEQUENCE_FILE).strip()
        return int(text) if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) else None

    def remember_sequence_number(self, number: int) -> bool:
        """Notes, before anything is done that must not be done twice, that this job was begun."""
        return self._write(SEQUENCE_FILE, str(number))

    @property
    def last_task_id(self) -> str | None:
        """The task of the last job."""
        return self._read(TASK_FILE) or None

    def remember_task_id(self, task_id: str) -> bool:
        """Notes the task of the job that begins."""
        return self._write(TASK_FILE, task_id)

    def notice_restore(self) -> bool:
        """Tells whether this VM was restored from another's disks, and takes note of the new identity.

        The sequence number and the task that are remembered are then the other VM's, and are forgotten. This
        has to be asked before the number is compared.
        """
        current = self._role_guid
        stored = _read(self._base / MACHINE_FILE)
        if stored == current or (stored and not current):
            # A configuration that cannot be read is no other machine.
            return False
        if stored:
            # The snapshot was taken in the middle of that job, and it is the other VM's to report it.
            for record in self.workers():
                record.forget()
            self._write(SEQUENCE_FILE, "-1")
            self._write(TASK_FILE, "")
        # Last: should this command be killed, the next one finds as much.
        self._write(MACHINE_FILE, current)
        return bool(stored)

    def unique_machine_id(self) -> str:
        """The VM's identity as the status reports it: the role's GUID without braces, "" if never known."""
        current = self._role_guid
        if current:
            text = current[1:-1] if current.startswith("{") else current
            if self._published_machine_id() != text:
                with contextlib.suppress(OSError):
                    write_atomically(self._unique_machine_file, text, 0o644)
            return text
        published = self._published_machine_id()
        return published or self._read(MACHINE_FILE)[1:-1]

    def workers(self) -> list[WorkerRecord]:
        """The workers that have not said that they finished, running or killed."""
        try:
            paths = sorted((self._base / _WORKERS).glob("*.json"))
        except OSError:
            return []
        return [record for record in map(_read_record, paths) if record is not None]

    def record_worker(self, sequence_number: int, process: ProcessName | None, task_id: str | None) -> bool:
        """Notes who is to report a job, so that a later command notices if that process is killed."""
        directory = self._base / _WORKERS
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
        """Notes that a job is reported, by the process that was to do it."""
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
    """Copies what is remembered from one version's directory to another's; returns what was copied.

    The agent has copied the sequence number already, with its times. What the target has is not replaced.

    Raises:
        OSError: something could not be copied.
    """
    carried = []
    for name in _CARRIED_OVER:
        if (source / name).is_file() and not (target / name).exists():
            temporary = target / f".{name}.{os.getpid()}"
            shutil.copy2(source / name, temporary)
            temporary.replace(target / name)
            carried.append(name)
    # Jobs that are still to be reported.
    for record in sorted((source / _WORKERS).glob("*.json")):
        (target / _WORKERS).mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(record, target / _WORKERS / record.name)
    return carried


def _read(path: Path) -> str:
    """What a file holds; nothing where it cannot be read."""
    try:
        return read_text(path) or ""
    except OSError:
        return ""


def siblings(base_directory: Path) -> list[Path]:
    """The directories of other versions of this extension, the one that was used last first."""
    prefix = base_directory.name.rpartition("-")[0] + "-"
    others = [
        path for path in base_directory.parent.glob(f"{prefix}*") if path != base_directory and path.is_dir()
    ]
    return sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _read_record(path: Path) -> WorkerRecord | None:
    if not path.stem.isdigit():
        return None
    process = task_id = None
    # A record that cannot be understood names a job nevertheless.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(path.read_text())
        task_id = document["taskId"]
        process = ProcessName(int(document["pid"]), int(document["startTicks"]), str(document["bootId"]))
    return WorkerRecord(path, int(path.stem), process, task_id if isinstance(task_id, str) else None)
