"""The folders that the agent makes for the handler, and a job that runs in them in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.protected_settings import key_pair
from vmsnapshot.handler import worker
from vmsnapshot.handler.agent.environment import HandlerEnvironment
from vmsnapshot.handler.agent.state import State
from vmsnapshot.handler.context import Context
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.report.outcome import TRANSITIONING
from vmsnapshot.interruptions import Interruptions

NUMBER = 7


def make_environment(base: Path) -> HandlerEnvironment:
    """Makes the folders below ``base`` that the agent makes before it runs a command."""
    for folder in ("config", "status"):
        (base / folder).mkdir(parents=True)
    return HandlerEnvironment(
        name="Publisher.VMSnapshotLinux",
        schema_version="1.0",
        log_folder=base / "log",
        config_folder=base / "config",
        status_folder=base / "status",
        events_folder=None,
        base_directory=base,
        lib_directory=base.parent,
    )


def run_job(base: Path, settings_file: bytes, background: Background) -> Any:
    """Runs the worker of one job, and returns the content of its status file.

    The caller replaces what would freeze or call the host.
    """
    environment = make_environment(base)
    key_pair().write(base.parent)
    (environment.config_folder / f"{NUMBER}.settings").write_bytes(settings_file)
    state = State(base, base.parent, unique_machine_file=base / "machine")
    context = Context(environment, {}, VmBackupConfiguration(), Log(None, "test"), state)
    asked = context.read_job(NUMBER)
    reporter = context.reporter_of(asked)
    reporter.write(TRANSITIONING)
    with Interruptions() as interruptions:
        worker.Worker(context, asked, reporter, background, interruptions).run()
    return json.loads((environment.status_folder / f"{NUMBER}.status").read_text())
