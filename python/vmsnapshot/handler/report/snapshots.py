"""The result per disk: one item of ``snapshotInfo``, from the guest or from the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DirectDriveIdentifier:
    """Identifies the snapshot of an Ultra or Premium v2 disk."""

    created_unix_ms: int | None
    """`None` if the host sent no valid time."""
    id: str | None
    token: str | None
    """Opaque and secret. It goes into the report and nowhere else."""
    instant_access_duration_minutes: Any = None

    def __repr__(self) -> str:
        return f"DirectDriveIdentifier(id={self.id!r})"


@dataclass(frozen=True)
class SnapshotItem:
    """The result of one disk, in the form of the report."""

    is_successful: bool | str
    """A JSON boolean from the guest. From the host, the value that it sent, unchanged."""
    snapshot_uri: str | None = None
    error_message: str | None = None
    blob_uri: str | None = None
    direct_drive: DirectDriveIdentifier | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the snapshot exists: JSON true, or exactly the host's string "true" (contract 6.2)."""
        return self.is_successful is True or self.is_successful == "true"
