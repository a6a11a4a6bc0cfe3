"""Holds applications still while a run freezes, proves that they held, and releases them whatever happens."""

from __future__ import annotations

from vmsnapshot.quiesce.applications import Application, Hook, MariaDb, MySql, PostgreSql, Scripts

__all__ = ["Application", "Hook", "MariaDb", "MySql", "PostgreSql", "Scripts"]
