"""The Python API refuses bad arguments before it opens anything, each with a code and without a secret."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest

import vmsnapshot
from tests.engine.api import SIGNATURE, refusal, uri


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, 3600.1, 1e300, 0.009])
def test_a_thaw_timeout_out_of_range_is_refused(plan: vmsnapshot.Plan, seconds: float) -> None:
    assert refusal(plan, thaw_timeout=seconds).code == "bad-thaw-timeout"
    assert refusal(plan, freeze_timeout=seconds).code == "bad-freeze-timeout"


@pytest.mark.parametrize("name", ["call_timeout", "sync_timeout", "connect_timeout"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 3600.1])
def test_another_time_limit_out_of_range_is_refused(plan: vmsnapshot.Plan, name: str, seconds: float) -> None:
    error = refusal(plan, None, **{name: seconds})
    assert error.code == "bad-time-limit"
    assert name.replace("_", " ") in str(error)
    # The message names the limits, because 5000 s is a valid duration that is only too long.
    assert "3600" in str(error)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("", "bad-uri"),
        ("no uri", "bad-uri"),
        (uri().replace("http:", "ftp:"), "bad-uri"),
        ("http://127.0.0.1:9/disks/disk", "unsigned-uri"),
        (uri(query="sv=1&sr=b&sp=rw"), "unsigned-uri"),
    ],
)
def test_a_bad_uri_is_refused_and_named_by_its_position(plan: vmsnapshot.Plan, bad: str, code: str) -> None:
    error = refusal(plan, [uri("first"), bad, uri("third")])
    assert error.code == code
    assert "blob 2 of 3" in str(error)


def test_an_expired_sas_is_refused(plan: vmsnapshot.Plan) -> None:
    query = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&se=2020-01-01T00%3A00%3A00Z&sp=rw"
    assert refusal(plan, [uri(query=query)]).code == "expired-sas"


def test_two_equal_blobs_are_refused(plan: vmsnapshot.Plan) -> None:
    assert refusal(plan, [uri("disk"), uri("disk")]).code == "duplicate-blob"


def test_an_unknown_choice_for_unusable_blobs_is_a_value_error(plan: vmsnapshot.Plan) -> None:
    with pytest.raises(ValueError, match="unusable_blobs"):
        vmsnapshot.prepare(plan, unusable_blobs="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [{"a-b": "1"}, {"": "1"}, {"a": "x\ny"}, {"a": "1", "A": "2"}])
def test_metadata_that_the_service_would_refuse_is_refused(
    plan: vmsnapshot.Plan, metadata: dict[str, str]
) -> None:
    assert refusal(plan, metadata=metadata).code == "bad-metadata"


def test_metadata_per_blob_must_cover_every_blob_and_fit_beside_the_common_metadata(
    plan: vmsnapshot.Plan,
) -> None:
    blobs = [uri("first"), uri("second")]
    for count in (1, 3):
        error = refusal(plan, blobs, blob_metadata=[{}] * count)
        assert error.code == "bad-metadata"
        assert str(count) in str(error)
    # A name may not be in both. Together they may not exceed what the service accepts for one blob.
    assert refusal(plan, blobs, metadata={"a": "1"}, blob_metadata=[{}, {"A": "2"}]).code == "bad-metadata"
    too_much = [{}, {"b": "x" * 8000}]
    assert refusal(plan, blobs, metadata={"a": "x" * 500}, blob_metadata=too_much).code == "bad-metadata"


@pytest.mark.parametrize("proxy", ["ftp://proxy:1", "proxy", "http://user:passw0rd@"])
def test_a_bad_proxy_is_refused_without_its_password(plan: vmsnapshot.Plan, proxy: str) -> None:
    error = refusal(plan, proxy=proxy)
    assert error.code == "bad-proxy"
    assert "passw0rd" not in str(error)


@pytest.mark.parametrize("arguments", [{"blobs": 1}, {"thaw_timeout": "1"}, {"no_such_argument": 1}])
def test_an_argument_of_the_wrong_type_is_a_type_error(plan: vmsnapshot.Plan, arguments: Any) -> None:
    with pytest.raises(TypeError):
        vmsnapshot.prepare(plan, **arguments)


@pytest.mark.parametrize(
    ("pattern", "code"), [("/no/such", "no-such-mount"), ("/no/*", "pattern-matches-nothing"), ("[", None)]
)
def test_a_pattern_that_matches_nothing_is_a_plan_error(pattern: str, code: str | None) -> None:
    with pytest.raises(vmsnapshot.PlanError) as raised:
        vmsnapshot.plan(include=[pattern])
    assert raised.value.code == (code or "bad-pattern")


def test_prepare_without_the_privilege_is_refused(plan: vmsnapshot.Plan) -> None:
    if os.geteuid() != 0:
        assert refusal(plan).code == "not-privileged"
        return
    program = (
        "import vmsnapshot\n"
        "try: vmsnapshot.prepare(vmsnapshot.plan(exclude=['/**']))\n"
        "except vmsnapshot.PrepareError as error: print(error.code)"
    )
    words = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all", sys.executable, "-c", program]
    finished = subprocess.run(words, cwd="/", capture_output=True, timeout=20, check=False)
    assert finished.stdout == b"not-privileged\n", finished.stderr.decode()
