"""The facts about the machine in the report, from files of the test and from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmsnapshot.handler.machine.facts import (
    guest_agent_version,
    machine_facts,
    os_version,
    running_workloads,
)

DAEMON = "_AZURE_GUEST_AGENT_DAEMON_VERSION_"


def process(proc: Path, pid: int, *command_line: str) -> Path:
    directory = proc / str(pid)
    directory.mkdir(parents=True)
    (directory / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in command_line))
    return directory


def test_the_facts_are_those_of_every_report_in_its_order(tmp_path: Path) -> None:
    process(tmp_path / "proc", 900, "/usr/sbin/mysqld")
    (tmp_path / "os-release").write_text('NAME="Ubuntu"\nVERSION="22.04.5 LTS (Jammy Jellyfish)"\n')
    (tmp_path / "lib/WALinuxAgent-2.15.0.1").mkdir(parents=True)
    facts = machine_facts(
        tmp_path / "lib/Microsoft.Azure.RecoveryServices.VMSnapshotLinux-1.0.9184.0",
        tmp_path / "lib",
        {},
        proc=tmp_path / "proc",
        os_release=tmp_path / "os-release",
    )
    assert facts == [
        ("pythonVersion", sys.version.split()[0].rstrip("+")),
        ("platformArchitecture", "64bit" if sys.maxsize > 2**32 else "32bit"),
        ("guestAgentVersion", "2.15.0.1"),
        ("extensionVersion", "1.0.9184.0"),
        ("osVersion", "Ubuntu-22.04.5 LTS (Jammy Jellyfish)"),
        ("kernelVersion", os.uname().release),
        ("workloads", "['mysqld']"),
        ("prePostEnabled", "False"),
    ]


def test_agent_versions_are_compared_as_numbers(tmp_path: Path) -> None:
    for name in ("WALinuxAgent-2.9.1.1", "WALinuxAgent-2.15.0.1", "WALinuxAgent-9.9.zip", "Other-99.1"):
        (tmp_path / name).mkdir()
    (tmp_path / "WALinuxAgent-3.0.0.0").write_text("a file is no agent")
    assert guest_agent_version(tmp_path, {DAEMON: "2.2.46"}) == "2.15.0.1"


def test_the_installed_agent_counts_when_it_is_newer_than_the_downloads(tmp_path: Path) -> None:
    (tmp_path / "WALinuxAgent-2.9.1.1").mkdir()
    assert guest_agent_version(tmp_path, {DAEMON: "2.10.0"}) == "2.10.0"


@pytest.mark.parametrize("environ", [{}, {DAEMON: ""}, {DAEMON: "0.0.x"}])
def test_the_agents_version_is_unknown_when_nothing_tells_it(tmp_path: Path, environ: dict[str, str]) -> None:
    assert guest_agent_version(tmp_path / "none", environ) == "Unknown"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NAME=Fedora\nVERSION='41 (Cloud Edition)'\nID=fedora\n", "Fedora-41 (Cloud Edition)"),
        (
            '# a comment\n\nVERSION_ID="3.0"\nNAME="Microsoft \\"Azure\\" Linux"\n',
            'Microsoft "Azure" Linux-3.0',
        ),
        ('NAME="Arch Linux"\n', "Arch Linux"),
        ("", "Linux"),
    ],
)
def test_the_system_is_named_from_os_release(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert os_version(tmp_path / "os-release") == version


def test_the_system_is_unknown_without_os_release(tmp_path: Path) -> None:
    assert os_version(tmp_path / "none") == "Unknown"


def test_workloads_are_found_in_command_lines_in_their_own_order(tmp_path: Path) -> None:
    process(tmp_path, 10, "/usr/bin/mongod", "--config", "/etc/mongod.conf")
    process(tmp_path, 11)
    process(tmp_path, 12, "/usr/lib/postgresql/15/bin/postgres", "-D", "/data")
    process(tmp_path, 13, "java", "-cp", "x" * 30000, "org.apache.cassandra.service.CassandraDaemon")
    (tmp_path / "mysqld").mkdir()
    assert running_workloads(tmp_path) == ["postgresql", "cassandra", "mongo"]


def test_a_process_that_vanishes_does_not_end_the_scan(tmp_path: Path) -> None:
    for pid in range(20, 40):
        (process(tmp_path, pid, "cat") / "cmdline").unlink()
    process(tmp_path, 30000, "oracleXE")
    assert running_workloads(tmp_path) == ["oracle"]


def test_the_handlers_own_command_line_is_no_workload(tmp_path: Path) -> None:
    process(tmp_path, os.getpid(), "python3", "worker", "--pre-script=/etc/oracle.sh")
    assert running_workloads(tmp_path) == []


def test_a_real_process_is_found_while_it_runs() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "cassandra"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        # Popen may return before the new command line is visible, because exec closes descriptors first.
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        assert "cassandra" in running_workloads()
        child.communicate(b"\n", timeout=30)


def test_a_command_line_that_cannot_be_read_does_not_keep_the_command_waiting(tmp_path: Path) -> None:
    process(tmp_path, 50, "mysqld")
    blocked = process(tmp_path, 51) / "cmdline"
    blocked.unlink()
    # Opening a pipe without a writer blocks, as reading does for a process that hangs in a page fault.
    os.mkfifo(blocked)
    started = time.monotonic()
    try:
        running = running_workloads(tmp_path, limit_seconds=0.2)
    finally:
        held_up = [thread for thread in threading.enumerate() if thread.name == "workloads"]
        os.close(os.open(blocked, os.O_RDWR))
        for thread in held_up:
            thread.join(10)
    assert time.monotonic() - started < 10
    assert held_up, "the scan was not held up"
    assert running in ([], ["mysqld"])


def test_missing_proc_is_no_workload(tmp_path: Path) -> None:
    assert running_workloads(tmp_path / "none") == []
