"""The polling service with systemd, whose systemctl only records its arguments, and without systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require
from vmsnapshot.handler import service
from vmsnapshot.handler.agent.environment import HandlerEnvironment
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.processes import ProcessName, name_of
from vmsnapshot.handler.service import PID_FILE, Machine, unit_text

NAME = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux"

# Records in files its arguments and whether the unit is active.
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> {state}/calls
case "$*" in
    *"{failing}"*) echo "Access denied" >&2; exit 1 ;;
    "is-active "*) [ -e {state}/active ] || exit 3 ;;
    "enable --now "* | restart*) touch {state}/active ;;
    "disable --now "*) rm -f {state}/active ;;
esac
"""

# The program in the place of the service. It makes the file `started`, and ends on SIGTERM.
SERVICE = """\
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
# Renamed, because the test reads it as soon as it exists.
pathlib.Path("started.new").write_text(" ".join(sys.argv[1:]))
pathlib.Path("started.new").rename("started")
while True:
    signal.pause()
"""


class FakeMachine:
    """Two versions of the extension, and a service manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.machine = Machine(root / "run/systemd/system", root / "etc/directsnapshot.service")
        self.log = Log(None, "test")
        self.old, self.new = self.version("1.0.0.0"), self.version("1.1.0.0")
        self.machine.unit_file.parent.mkdir()

    def version(self, number: str) -> HandlerEnvironment:
        base = self.root / "lib" / f"{NAME}-{number}"
        (base / "bin").mkdir(parents=True)
        (base / "bin/main.py").write_text(SERVICE)
        folders = dict.fromkeys(("log_folder", "config_folder", "status_folder"), base)
        return HandlerEnvironment(
            NAME, "1.0", **folders, events_folder=None, base_directory=base, lib_directory=base.parent
        )

    def run_systemd(self, *, failing: str = "nothing fails") -> None:
        self.machine.systemd_directory.mkdir(parents=True)
        systemctl = self.root / "bin/systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(SYSTEMCTL.format(state=self.root, failing=failing))
        systemctl.chmod(0o755)

    def calls(self) -> list[str]:
        """The arguments of systemctl since the last call of `calls`."""
        calls = self.root / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines

    def is_active(self) -> bool:
        return (self.root / "active").exists()

    @property
    def unit(self) -> str:
        return self.machine.unit_file.read_text()

    def errors(self) -> str:
        return "\n".join(line.text for line in self.log.warnings_and_errors())

    def install(self, environment: HandlerEnvironment) -> None:
        service.install(environment, self.log, machine=self.machine)

    def resume(self, environment: HandlerEnvironment) -> None:
        service.resume(environment, self.log, machine=self.machine)

    def stop(self, environment: HandlerEnvironment) -> None:
        service.stop(environment, self.log, machine=self.machine)

    def move(self, environment: HandlerEnvironment, target: HandlerEnvironment) -> None:
        service.move(environment, target.base_directory, self.log, machine=self.machine)

    def remove(self, environment: HandlerEnvironment) -> None:
        service.remove(environment, self.log, machine=self.machine)

    def processes(self) -> list[ProcessName]:
        """The services that run without systemd."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.root).encode() in (directory / "cmdline").read_bytes():
                    found.append(name_of(int(directory.name)))
        return [name for name in found if name is not None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMachine]:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    machine = FakeMachine(tmp_path)
    yield machine
    for process in machine.processes():
        process.end(patience_seconds=0.0)


def wait_for(path: Path, limit_seconds: float = 10.0) -> None:
    until = time.monotonic() + limit_seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.005)


def started_process(environment: HandlerEnvironment) -> ProcessName:
    """Returns the process that the pid file names, once it is ready for SIGTERM."""
    wait_for(environment.base_directory / "started")
    number = (environment.base_directory / PID_FILE).read_text().splitlines()[0]
    process = name_of(int(number))
    assert process is not None
    return process


# With systemd.


def test_installing_writes_the_unit_and_enables_and_starts_it(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    assert fake.calls() == [
        "daemon-reload",
        "enable directsnapshot.service",
        "restart --no-block directsnapshot.service",
    ]
    assert fake.is_active()
    assert fake.machine.unit_file.stat().st_mode & 0o777 == 0o644
    base = fake.old.base_directory
    lines = fake.unit.splitlines()
    assert {
        "Description=Snapshot service for Microsoft Azure Restore Points",
        "After=network-online.target",
        "Type=simple",
        "Restart=always",
        "KillMode=process",
        f"WorkingDirectory={base}",
        f"ExecStart={sys.executable} -I -S -X utf8 {base}/bin/main.py poll",
        "WantedBy=multi-user.target",
    } <= set(lines)


def test_the_unit_does_not_wait_for_a_target_that_waits_for_services(fake: FakeMachine) -> None:
    # A service of multi-user.target that runs `enable`, and is still starting, must not delay this one.
    after = [line for line in unit_text(fake.old.base_directory).splitlines() if line.startswith("After=")]
    assert not any(target in line for line in after for target in ("multi-user", "graphical", "default"))


@pytest.mark.parametrize("name", ["plain", 'an "odd" 100%$HOME'])
def test_systemd_understands_the_unit(fake: FakeMachine, name: str) -> None:
    require(shutil.which("systemd-analyze") is not None, "needs systemd-analyze: see .ci/system-packages")
    program = fake.root / name / "bin/main.py"
    program.parent.mkdir(parents=True)
    program.touch()
    fake.machine.unit_file.write_text(unit_text(fake.root / name))
    words = ["systemd-analyze", "verify", "--man=no", str(fake.machine.unit_file)]
    finished = subprocess.run(words, capture_output=True, text=True, timeout=30.0, check=True)
    # It only warns about lines that it ignores. It may also complain about other units.
    assert [line for line in finished.stderr.splitlines() if "directsnapshot" in line] == []


def test_what_systemd_would_expand_in_a_path_is_escaped(tmp_path: Path) -> None:
    directory = tmp_path / 'a "odd" 100%$HOME\\dir'
    unit = unit_text(directory)
    words = f'{tmp_path}/a \\"odd\\" 100%%$$HOME\\\\dir/bin/main.py'
    assert f'-X utf8 "{words}" poll' in unit
    assert f'WorkingDirectory={tmp_path}/a "odd" 100%%$HOME\\dir\n' in unit


def test_installing_again_only_asks_whether_it_is_active(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    fake.calls()
    fake.install(fake.old)
    assert fake.calls() == ["is-active --quiet directsnapshot.service"]


def test_installing_replaces_a_service_of_another_version(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    fake.calls()
    fake.install(fake.new)
    assert "restart --no-block directsnapshot.service" in fake.calls()
    assert str(fake.new.base_directory) in fake.unit
    assert str(fake.old.base_directory) not in fake.unit


def test_a_stopped_service_keeps_its_unit_and_is_resumed(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    fake.calls()
    fake.stop(fake.old)
    assert fake.calls() == ["disable --now directsnapshot.service"]
    assert not fake.is_active()
    fake.resume(fake.old)
    assert fake.calls() == [
        "is-active --quiet directsnapshot.service",
        "enable --now --no-block directsnapshot.service",
    ]
    assert fake.is_active()


def test_without_a_service_nothing_is_run_to_resume_stop_move_or_remove_it(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.resume(fake.old)
    fake.stop(fake.old)
    fake.move(fake.new, fake.new)
    fake.remove(fake.old)
    assert fake.calls() == []
    assert fake.errors() == ""


def test_a_service_of_another_version_is_stopped_but_not_resumed(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    fake.stop(fake.new)
    assert not fake.is_active()
    fake.resume(fake.new)
    assert not fake.is_active()


def test_through_an_update_the_service_becomes_the_new_versions(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    # The order in which the agent calls these during an update.
    fake.stop(fake.old)
    fake.move(fake.new, fake.new)
    assert not fake.is_active()
    fake.stop(fake.old)
    fake.remove(fake.old)
    fake.resume(fake.new)
    assert fake.is_active()
    assert f"WorkingDirectory={fake.new.base_directory}\n" in fake.unit


def test_a_downgrade_is_moved_by_the_version_that_goes(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.new)
    fake.stop(fake.new)
    fake.move(fake.new, fake.old)
    fake.remove(fake.new)
    fake.resume(fake.old)
    assert fake.is_active()
    assert f"WorkingDirectory={fake.old.base_directory}\n" in fake.unit


def test_a_predecessor_that_still_runs_is_replaced_when_it_is_moved(fake: FakeMachine) -> None:
    fake.run_systemd()
    lines = f"WorkingDirectory={fake.old.base_directory}\nExecStart=python main/handle_host_daemon.py\n"
    fake.machine.unit_file.write_text(f"[Service]\n{lines}")
    fake.move(fake.new, fake.new)
    assert fake.calls() == ["daemon-reload", "try-restart --no-block directsnapshot.service"]
    assert "handle_host_daemon" not in fake.unit


def test_removing_ends_the_service_and_deletes_the_unit(fake: FakeMachine) -> None:
    fake.run_systemd()
    fake.install(fake.old)
    fake.calls()
    fake.remove(fake.old)
    assert fake.calls() == ["disable --now directsnapshot.service", "daemon-reload"]
    assert not fake.is_active()
    assert not fake.machine.unit_file.exists()


def test_a_failing_systemctl_is_only_logged(fake: FakeMachine) -> None:
    fake.run_systemd(failing="daemon-reload")
    fake.install(fake.old)
    assert fake.calls() == ["daemon-reload"]
    assert "`systemctl daemon-reload` failed: Access denied" in fake.errors()


def test_a_missing_systemctl_and_a_directory_that_is_not_there_are_only_logged(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.machine.systemd_directory.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(fake.root))
    fake.install(fake.old)
    assert "could not install the polling service: no such file or directory" in fake.errors()


def test_a_systemctl_that_does_not_end_is_given_up(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.run_systemd()
    (fake.root / "bin/systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(service, "_SYSTEMCTL_LIMIT_SECONDS", 0.05)
    begun_at = time.monotonic()
    fake.install(fake.old)
    assert time.monotonic() - begun_at < 30.0
    assert "did not end within" in fake.errors()


# Without systemd.


def test_without_systemd_it_is_a_process_in_a_session_of_its_own_with_a_pid_file(fake: FakeMachine) -> None:
    fake.install(fake.old)
    process = started_process(fake.old)
    assert fake.processes() == [process]
    assert (fake.old.base_directory / "started").read_text() == "poll"
    assert os.getsid(process.pid) == process.pid
    assert Path(f"/proc/{process.pid}/cwd").resolve() == fake.old.base_directory
    assert not fake.machine.unit_file.exists()


def test_without_systemd_it_is_started_once(fake: FakeMachine) -> None:
    fake.install(fake.old)
    process = started_process(fake.old)
    fake.install(fake.old)
    fake.resume(fake.old)
    assert fake.processes() == [process]


def test_without_systemd_it_is_stopped_and_resumed(fake: FakeMachine) -> None:
    fake.resume(fake.old)
    assert fake.processes() == []
    fake.install(fake.old)
    process = started_process(fake.old)
    fake.stop(fake.old)
    assert not process.is_alive()
    assert fake.errors() == ""
    (fake.old.base_directory / "started").unlink()
    fake.resume(fake.old)
    process = started_process(fake.old)
    assert fake.processes() == [process]


def test_without_systemd_an_update_takes_it_along(fake: FakeMachine) -> None:
    fake.install(fake.old)
    started_process(fake.old)
    fake.stop(fake.old)
    fake.move(fake.new, fake.new)
    fake.stop(fake.old)
    fake.remove(fake.old)
    assert fake.processes() == []
    fake.resume(fake.new)
    process = started_process(fake.new)
    assert fake.processes() == [process]


def test_without_systemd_nothing_is_left_after_removal(fake: FakeMachine) -> None:
    fake.install(fake.old)
    started_process(fake.old)
    fake.remove(fake.old)
    assert fake.processes() == []
    assert not (fake.old.base_directory / PID_FILE).exists()
    fake.resume(fake.old)
    assert fake.processes() == []


def test_a_process_that_got_the_recorded_number_is_left_alone(fake: FakeMachine) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        name = name_of(bystander.pid)
        assert name is not None
        for text in (f"{name.pid}\n", f"{name.pid}\n{name.start_ticks - 1} {name.boot_id}\n", "no number\n"):
            (fake.old.base_directory / PID_FILE).write_text(text)
            fake.remove(fake.old)
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait(timeout=5.0)


def test_a_predecessor_without_systemd_is_ended(fake: FakeMachine) -> None:
    program = fake.old.base_directory / "handle_host_daemon.py"
    program.write_text(SERVICE)
    predecessor = subprocess.Popen([sys.executable, str(program)], cwd=fake.old.base_directory)
    wait_for(fake.old.base_directory / "started")
    (fake.old.base_directory / PID_FILE).write_text(f"{predecessor.pid}\n")
    fake.move(fake.new, fake.new)
    assert predecessor.wait(timeout=5.0) == 0
    fake.resume(fake.new)
    process = started_process(fake.new)
    assert fake.processes() == [process]


def test_a_service_that_does_not_end_is_killed(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "STOP_LIMIT_SECONDS", 0.1)
    program = SERVICE.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    (fake.old.base_directory / "bin/main.py").write_text(program)
    fake.install(fake.old)
    process = started_process(fake.old)
    fake.stop(fake.old)
    assert not process.is_alive()
    assert "had to be killed" in fake.errors()


def test_with_systemd_a_service_that_was_started_without_it_is_replaced(fake: FakeMachine) -> None:
    fake.install(fake.old)
    process = started_process(fake.old)
    fake.run_systemd()
    fake.install(fake.old)
    assert not process.is_alive()
    assert not (fake.old.base_directory / PID_FILE).exists()
    assert fake.is_active()
