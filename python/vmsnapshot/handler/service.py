"""Starts and stops the polling service: a systemd unit or, without systemd, a process with a pid file.

`polling` has the work of the service. Nothing here raises. A failure is only logged, because backups work
without the service. Every call of systemctl has a time limit.

Stopping does not delete the unit file or the pid file. From it, `resume` knows that the host should be
polled, and `move` knows that the next version should do so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmsnapshot.handler.agent.environment import HandlerEnvironment
from vmsnapshot.handler.agent.state import siblings
from vmsnapshot.handler.files import open_or_create, read_text, write_atomically
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.processes import ProcessName, begin_to_move, name_of

UNIT = "directsnapshot.service"
PID_FILE = "directsnapshot.pid"
LOCK_FILE = "directsnapshot.lock"

STOP_LIMIT_SECONDS = 90
"""How long the service may need to end after SIGTERM: a freeze of 60 s by default, and its calls to the host.

Killing it after that is safe, even in the window, because its watchdog thaws.
"""

_SYSTEMCTL_LIMIT_SECONDS = 20.0
# The predecessor's program. Its pid file has only a number, which may belong to any process by now.
_PREDECESSOR = b"handle_host_daemon.py"
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:=@+-]+")
_WORKING_DIRECTORY = "WorkingDirectory="


@dataclass(frozen=True)
class Machine:
    """The files of the machine's service manager."""

    systemd_directory: Path = Path("/run/systemd/system")
    """This directory exists exactly while systemd is the service manager: sd_booted(3)."""
    unit_file: Path = Path("/etc/systemd/system") / UNIT

    def runs_systemd(self) -> bool:
        """Returns whether units can be started."""
        return self.systemd_directory.is_dir()


THIS_MACHINE = Machine()


def install(environment: HandlerEnvironment, log: Log, *, machine: Machine = THIS_MACHINE) -> None:
    """Starts the polling service of this version, now and at each boot. Does almost nothing if it is running.

    Blocking: a minute if systemd does not answer. Does not wait for the end of a service that is replaced.
    """
    base = environment.base_directory
    with _only_logged(log, "install"):
        if not machine.runs_systemd():
            _start_detached(base, log)
            return
        _end_detached(base, log)
        text = unit_text(base)
        if read_text(machine.unit_file) == text:
            _ensure_active(log)
            return
        write_atomically(machine.unit_file, text, 0o644)
        if _systemctl(log, "daemon-reload") and _systemctl(log, "enable", UNIT):
            # Starts the service, or replaces one that runs the code of another version.
            _systemctl(log, "restart", "--no-block", UNIT)
        log.info("the polling service was installed")


def resume(environment: HandlerEnvironment, log: Log, *, machine: Machine = THIS_MACHINE) -> None:
    """Starts the service again if it is installed, belongs to this version, and was stopped.

    Quick enough for enable: without a service it only checks whether two files exist.
    """
    base = environment.base_directory
    with _only_logged(log, "resume"):
        if not machine.runs_systemd():
            if (base / PID_FILE).exists():
                _start_detached(base, log)
        elif _directory_of(read_text(machine.unit_file)) == str(base):
            _ensure_active(log)


def stop(environment: HandlerEnvironment, log: Log, *, machine: Machine = THIS_MACHINE) -> None:
    """Ends the service of any version after its thaw. A reboot does not start it again.

    Blocking: `STOP_LIMIT_SECONDS`, and some seconds more.
    """
    with _only_logged(log, "stop"):
        if machine.runs_systemd() and machine.unit_file.exists():
            _disable(log)
        pid_file = environment.base_directory / PID_FILE
        if pid_file.exists():
            _end(pid_file, log)


def move(environment: HandlerEnvironment, target: Path, log: Log, *, machine: Machine = THIS_MACHINE) -> None:
    """Assigns an installed service to the version in `target`. The `resume` of that version starts it.

    A service that is still running belongs to the predecessor, and is replaced now.
    """
    target = target.absolute()
    with _only_logged(log, "move"):
        text = read_text(machine.unit_file)
        if text is not None and text != unit_text(target):
            write_atomically(machine.unit_file, unit_text(target), 0o644)
            if machine.runs_systemd() and _systemctl(log, "daemon-reload"):
                _systemctl(log, "try-restart", "--no-block", UNIT)
            log.info(f"the polling service is now that of `{target.name}`")
        sources = {environment.base_directory, *siblings(target)} - {target}
        for source in sources:
            if _end_detached(source, log) and not (target / PID_FILE).exists():
                write_atomically(target / PID_FILE, "", 0o644)


def remove(environment: HandlerEnvironment, log: Log, *, machine: Machine = THIS_MACHINE) -> None:
    """Ends and removes the service of this version. The service of another version stays.

    During an update, the old version is uninstalled after the service was moved to the new version.

    Blocking: as `stop`.
    """
    base = environment.base_directory
    with _only_logged(log, "remove"):
        _end_detached(base, log)
        if _directory_of(read_text(machine.unit_file)) != str(base):
            return
        if machine.runs_systemd():
            _disable(log)
        machine.unit_file.unlink()
        if machine.runs_systemd():
            _systemctl(log, "daemon-reload")
        log.info("the polling service was removed")


def unit_text(base_directory: Path) -> str:
    """Returns the text of the unit for the version in `base_directory`."""
    # `%` begins a specifier in every setting: systemd.unit(5).
    directory = str(base_directory).replace("%", "%%")
    return f"""\
[Unit]
Description=Snapshot service for Microsoft Azure Restore Points
# Not after a target that waits for services: one that is still starting may have run the command that starts
# this service.
After=network-online.target
# No restarts for ever if the extension was deleted without uninstall.
ConditionPathExists={directory}/bin/main.py

[Service]
Type=simple
{_WORKING_DIRECTORY}{directory}
ExecStart={" ".join(map(_quoted, _command(base_directory)))}
Restart=always
# Long enough not to reach systemd's limit on starts. After that limit the service would not start again.
RestartSec=10
# Signal only the service itself. If it is killed, its watchdog thaws and ends by itself.
KillMode=process
TimeoutStopSec={STOP_LIMIT_SECONDS}

[Install]
WantedBy=multi-user.target
"""


def _command(base_directory: Path) -> Sequence[str]:
    return [sys.executable, "-I", "-S", "-X", "utf8", str(base_directory / "bin/main.py"), "poll"]


def _quoted(word: str) -> str:
    """Quotes a word for ExecStart: systemd.service(5), "Command lines"."""
    if _PLAIN_WORD.fullmatch(word):
        return word
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, escaped)
    return f'"{word}"'


def _directory_of(unit: str | None) -> str | None:
    """Returns the directory of the version that a unit runs, or `None`."""
    for line in (unit or "").splitlines():
        if line.startswith(_WORKING_DIRECTORY):
            return line[len(_WORKING_DIRECTORY) :].replace("%%", "%")
    return None


def _ensure_active(log: Log) -> None:
    # `is-active` also fails for a service that systemd is about to restart. Starting that one does no harm.
    if not _systemctl(log, "is-active", "--quiet", UNIT, may_say_no=True):
        _systemctl(log, "enable", "--now", "--no-block", UNIT)


def _disable(log: Log) -> None:
    _systemctl(log, "disable", "--now", UNIT, grace_seconds=STOP_LIMIT_SECONDS)


def _systemctl(log: Log, *words: str, may_say_no: bool = False, grace_seconds: float = 0.0) -> bool:
    """Runs one command of systemctl. If it fails, logs the cause and returns False."""
    limit_seconds = _SYSTEMCTL_LIMIT_SECONDS + grace_seconds
    try:
        finished = subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.error(f"`systemctl {' '.join(words)}` did not end within {limit_seconds:g} s")
        return False
    if finished.returncode != 0 and not may_say_no:
        cause = finished.stderr.decode(errors="replace").strip()[:200] or f"exit status {finished.returncode}"
        log.error(f"`systemctl {' '.join(words)}` failed: {cause}")
    return finished.returncode == 0


def _start_detached(base_directory: Path, log: Log) -> None:
    """Starts the service as a process of its own, unless it is running."""
    pid_file = base_directory / PID_FILE
    # A worker and a command may do this at the same time. Closing the descriptor releases the lock. The lock
    # has a file of its own, because commands lock the directory while they are at work.
    lock = open_or_create(base_directory / LOCK_FILE, os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = _recorded(pid_file)
        if recorded is not None and recorded.is_alive():
            return
        process = subprocess.Popen(
            _command(base_directory),
            cwd=base_directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # The new session has no terminal and receives no SIGHUP, so nohup is not needed.
            start_new_session=True,
        )
        is_moved = begin_to_move(process.pid, "polling")
        name = name_of(process.pid)
        if not is_moved():
            log.warning("the polling service has no control group of its own: ending its starter's ends it")
        # Nothing waits for it. init inherits it.
        process.returncode = 0
        if name is None:
            log.error("the polling service ended as soon as it was started")
            return
        # A number alone may belong to another process later.
        write_atomically(pid_file, f"{name.pid}\n{name.start_ticks} {name.boot_id}\n", 0o644)
    finally:
        os.close(lock)
    log.info(f"the polling service was started without systemd, as process {name.pid}")


def _end_detached(base_directory: Path, log: Log) -> bool:
    """Ends a service without a unit and deletes its pid file. Returns False if there is no pid file."""
    pid_file = base_directory / PID_FILE
    if not pid_file.exists():
        return False
    _end(pid_file, log)
    pid_file.unlink()
    return True


def _end(pid_file: Path, log: Log) -> None:
    process = _recorded(pid_file)
    if process is not None and not process.end(patience_seconds=STOP_LIMIT_SECONDS):
        log.error(f"the polling service, process {process.pid}, had to be killed")


def _recorded(pid_file: Path) -> ProcessName | None:
    """Returns the process in a pid file, or `None` if it is not certain that this is the service."""
    number, _, rest = (read_text(pid_file) or "").partition("\n")
    number, fields = number.strip(), rest.split()
    if not re.fullmatch("[0-9]{1,10}", number):
        return None
    if len(fields) == 2 and re.fullmatch("[0-9]{1,20}", fields[0]):
        return ProcessName(int(number), int(fields[0]), fields[1])
    with contextlib.suppress(OSError):
        if _PREDECESSOR in Path(f"/proc/{number}/cmdline").read_bytes():
            return name_of(int(number))
    return None


@contextlib.contextmanager
def _only_logged(log: Log, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = (error.strerror or type(error).__name__).lower()
        log.error(f"could not {what} the polling service: {cause}")
