"""Which quiescer holds which application."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Callable

from vmsnapshot.quiesce.applications import Application, Hook, MariaDb, MySql, PostgreSql, Scripts
from vmsnapshot.quiesce.hook import HookQuiescer
from vmsnapshot.quiesce.link import RunLink
from vmsnapshot.quiesce.mariadb import MariaDbQuiescer
from vmsnapshot.quiesce.postgresql import PostgreSqlQuiescer
from vmsnapshot.quiesce.quiescer import Quiescer
from vmsnapshot.quiesce.scripts import ScriptsQuiescer

CLASSES: dict[str, type[Application]] = {
    of_kind.kind: of_kind for of_kind in (Hook, MariaDb, MySql, PostgreSql, Scripts)
}


def to_document(application: Application) -> dict[str, Any]:
    """Returns an application as JSON has it."""
    return {"kind": application.kind, **asdict(application)}


def from_document(document: dict[str, Any]) -> Application:
    """Returns the application of `to_document`."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in document.items()
    }
    of_kind: Callable[..., Application] = CLASSES[values.pop("kind")]
    return of_kind(**values)


def quiescer_of(application: Application, run: RunLink) -> Quiescer:
    """Returns what holds the application still."""
    if isinstance(application, Hook):
        return HookQuiescer(application, run)
    if isinstance(application, MariaDb):
        return MariaDbQuiescer(application, run)
    if isinstance(application, PostgreSql):
        return PostgreSqlQuiescer(application, run)
    if isinstance(application, Scripts):
        return ScriptsQuiescer(application, run)
    raise AssertionError(application.kind)
