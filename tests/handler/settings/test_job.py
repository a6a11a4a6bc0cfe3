"""What is known about a job even if its settings are unusable."""

from __future__ import annotations

from tests.handler.settings.settings_of_a_job import STATUS_URI, public
from vmsnapshot.handler.secret import SasUri
from vmsnapshot.handler.settings.envelope import Envelope
from vmsnapshot.handler.settings.job import TEXT_LIMIT_CHARACTERS, quick_job
from vmsnapshot.handler.settings.parser import parse
from vmsnapshot.handler.settings.wire import Job


def test_quick_job_is_the_job_of_the_public_settings() -> None:
    envelope = Envelope(public(statusBlobUri=STATUS_URI))
    assert quick_job(envelope) == Job("task_1", "638827848000000000", True, SasUri(STATUS_URI), None)


def test_task_id_or_start_that_is_too_long_to_be_repeated_does_not_count() -> None:
    longest = "x" * TEXT_LIMIT_CHARACTERS
    job = quick_job(Envelope(public(taskId=longest, commandStartTimeUTCTicks=longest)))
    assert (job.task_id, job.start_ticks) == (longest, longest)
    job = quick_job(Envelope(public(taskId=longest + "x", commandStartTimeUTCTicks=longest + "x")))
    assert (job.task_id, job.start_ticks) == (None, None)


def test_task_id_that_is_too_long_is_named_in_the_warnings() -> None:
    settings = parse(Envelope(public(taskId="x" * (TEXT_LIMIT_CHARACTERS + 1))), {})
    assert "public taskId is ignored: it is not a string of at most 1024 characters" in settings.warnings
