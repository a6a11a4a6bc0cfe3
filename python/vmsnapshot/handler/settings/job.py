"""Reads what is known of a job even if its settings cannot be used: enough to report on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.values import is_scalar, usable_text
from vmsnapshot.handler.settings.wire import Job

_V2 = "microsoft.compute/virtualmachines"

TEXT_LIMIT_CHARACTERS = 1024
"""The longest task id, and the longest start time, that counts. A task id is a GUID, perhaps with a suffix.
Records, reports and log lines repeat both."""


def quick_job(envelope: Envelope) -> Job:
    """Returns what the public settings show of the job, without decryption. Never raises."""
    return job_of(envelope.public, {})


def job_of(public: Mapping[str, Any], protected: Mapping[str, Any]) -> Job:
    """Returns the same from both parts of the settings. If both name a blob, the public one counts."""
    ticks = public.get("commandStartTimeUTCTicks")
    return Job(
        task_id=short_text(public.get("taskId")),
        start_ticks=ticks if is_scalar(ticks) and len(str(ticks)) <= TEXT_LIMIT_CHARACTERS else None,
        is_v2=(usable_text(public.get("vmType")) or "").lower() == _V2,
        status_blob=_blob(public.get("statusBlobUri")) or _blob(protected.get("statusBlobUri")),
        logs_blob=_blob(public.get("logsBlobUri")) or _blob(protected.get("logsBlobUri")),
    )


def short_text(value: Any) -> str | None:
    """Returns the value if it is a usable string that is not too long to be repeated."""
    text = usable_text(value)
    return text if text is not None and len(text) <= TEXT_LIMIT_CHARACTERS else None


def _blob(value: Any) -> SasUri | None:
    return SasUri(usable_text(value) or "") or None
