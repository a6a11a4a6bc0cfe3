"""The folders that the agent makes for the handler."""

from __future__ import annotations

from pathlib import Path

from vmsnapshot.handler.agent.environment import HandlerEnvironment


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
