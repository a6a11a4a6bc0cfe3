"""What became of each disk: one item of ``snapshotInfo``, whoever took the snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DirectDriveIdentifier:
    """What identifies the snapshot of an Ultra or Premium v2 disk."""

    created_unix_ms: int | None
    """None where the host gave no usable time."""
    id: str | None
    token: str | None
    """Opaque, and secret: it goes into the report and nowhere else."""
    instant_access_duration_minutes: Any = None

    def __repr__(self) -> str:
        return f"DirectDriveIdentifier(id={self.id!r})"


@dataclass(frozen=True)
class SnapshotItem:
    """One disk's outcome, in the form in which it is reported."""

    is_successful: bool | str
    """As it is reported: a JSON boolean from the guest path, whatever the host sent from the host path."""
    snapshot_uri: str | None = None
    error_message: str | None = None
    blob_uri: str | None = None
    direct_drive: DirectDriveIdentifier | None = None

    @property
    def succeeded(self) -> bool:
        """Whether there is a snapshot: true, or the host's text "true"."""
        return self.is_successful is True or (
            isinstance(self.is_successful, str) and self.is_successful.lower() == "true"
        )
