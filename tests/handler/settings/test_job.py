"""What is known about a job even if its settings are unusable."""

from __future__ import annotations

from tests.handler.settings.settings_of_a_job import STATUS_URI, public
from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.job import quick_job
from vmsnapshot.handler.settings.wire import Job


def test_quick_job_is_the_job_of_the_public_settings() -> None:
    envelope = Envelope(public(statusBlobUri=STATUS_URI))
    assert quick_job(envelope) == Job("task_1", "638827848000000000", True, SasUri(STATUS_URI), None)
