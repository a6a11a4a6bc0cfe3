"""Snapshots by the guest: encryption settings before the window, and the items of the report after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.broken_proxy import WAYS, broken_proxy
from tests.support.host_service import NEVER_MS, SIGNATURE, USUAL, Answer, HostService, blob_error
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.guest import blob_items, disk_encryption_settings
from vmsnapshot.handler.network.proxies import OptionalProxy
from vmsnapshot.handler.report.snapshots import SnapshotItem
from vmsnapshot.handler.secret import SasUri

URI = "https://contoso.blob.example/vhds/os.vhd"
BUSY = '<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code></Error>'


@dataclass(frozen=True)
class Outcome:
    """An outcome as the engine returns it."""

    uri: str = URI
    outcome: str = "refused"
    snapshot_uri: str | None = None
    http_status: int | None = 503
    message: str | None = None
    body: str | None = None


def items_of(*outcomes: Any) -> tuple[SnapshotItem, ...]:
    return blob_items(outcomes)


def asked(
    service: HostService, *names: str, proxy: str | None = None, limit_seconds: float = 10.0
) -> tuple[tuple[str | None, ...], list[str]]:
    """Returns the settings of the blobs, and the warnings."""
    blobs = [SasUri(service.uri(name)) for name in names]
    warnings: list[str] = []
    with Background() as background:
        asking = disk_encryption_settings(
            background.session,
            blobs,
            proxy=OptionalProxy(proxy),
            warn=warnings.append,
            limit_seconds=limit_seconds,
        )
        settings = background.submit(asking).result(timeout=30)
    assert not any(SIGNATURE in warning or "hunter2" in warning for warning in warnings)
    return settings, warnings


def settings_of(service: HostService, *names: str, limit_seconds: float = 10.0) -> tuple[str | None, ...]:
    return asked(service, *names, limit_seconds=limit_seconds)[0]


def test_snapshot_that_was_created_is_an_item_with_both_uris_and_an_empty_message() -> None:
    created = Outcome(outcome="created", snapshot_uri=f"{URI}?snapshot=2025-05-14T02:10:06Z", http_status=201)
    assert items_of(created) == (
        SnapshotItem(True, f"{URI}?snapshot=2025-05-14T02:10:06Z", "", blob_uri=URI),
    )


def test_refused_snapshot_reports_the_body_and_keeps_the_blobs_uri() -> None:
    assert items_of(Outcome(body=BUSY)) == (SnapshotItem(False, None, BUSY, blob_uri=URI),)


def test_refusal_without_a_body_reports_the_message() -> None:
    (item,) = items_of(Outcome(message="the server is busy"))
    assert item.error_message == "the server is busy"


def test_call_that_failed_itself_has_no_message() -> None:
    (item,) = items_of(Outcome(outcome="unknown", http_status=None, message="connection reset"))
    assert item == SnapshotItem(False, None, None, blob_uri=URI)


def test_body_of_a_refusal_is_bounded_and_has_no_signature() -> None:
    (item,) = items_of(Outcome(body=f"\ufeffno such {URI}?sig={SIGNATURE}&sp=rw " + 5000 * "x"))
    assert item.error_message is not None
    assert item.error_message.startswith(f"no such {URI}?... x")
    assert len(item.error_message) == 4096


def test_items_are_in_the_order_of_the_outcomes() -> None:
    outcomes = [Outcome(uri=f"https://c.example/{n}") for n in range(5)]
    assert [item.blob_uri for item in items_of(*outcomes)] == [outcome.uri for outcome in outcomes]


def test_each_disk_gets_its_own_encryption_settings(service: HostService) -> None:
    service.create_page_blob("os.vhd", metadata={"diskencryptionsettings": "os settings"})
    service.create_page_blob("plain.vhd")
    service.create_page_blob("data.vhd", metadata={"DiskEncryptionSettings": "data settings"})
    assert settings_of(service, "os.vhd", "plain.vhd", "missing.vhd", "data.vhd") == (
        "os settings",
        None,
        None,
        "data settings",
    )


def test_encryption_settings_are_asked_for_as_the_contract_says(service: HostService) -> None:
    service.create_page_blob("os.vhd")
    settings_of(service, "os.vhd")
    (request,) = service.requests()
    assert (request.operation, request.path) == ("GET metadata", "/disks/os.vhd")
    assert request.has_signature
    assert request.header("x-ms-version") == "2018-03-28"
    date = request.header("x-ms-date")
    assert date is not None and date.endswith(" GMT")


def test_encryption_settings_are_asked_for_again_after_a_servers_fault(service: HostService) -> None:
    service.create_page_blob("os.vhd", metadata={"DiskEncryptionSettings": "os settings"})
    service.script("os.vhd", blob_error(503, "ServerBusy"), Answer(drops_connection=True), USUAL)
    assert settings_of(service, "os.vhd") == ("os settings",)


def test_disk_that_does_not_answer_holds_up_no_other(service: HostService) -> None:
    service.create_page_blob("data.vhd", metadata={"DiskEncryptionSettings": "data settings"})
    service.script("os.vhd", Answer(after_ms=NEVER_MS))
    assert settings_of(service, "os.vhd", "data.vhd", limit_seconds=1.0) == (None, "data settings")


def test_encryption_settings_of_an_unusable_uri_are_none() -> None:
    warnings: list[str] = []
    with Background() as background:
        asking = disk_encryption_settings(
            background.session, [SasUri("no uri")], proxy=OptionalProxy(), warn=warnings.append
        )
        assert background.submit(asking).result(timeout=10) == (None,)
    assert len(warnings) == 1


def test_disk_that_could_not_be_asked_for_its_settings_is_named_in_a_warning(service: HostService) -> None:
    service.create_page_blob("os.vhd", metadata={"DiskEncryptionSettings": "os settings"})
    service.create_page_blob("plain.vhd")
    service.create_page_blob("data.vhd", metadata={"DiskEncryptionSettings": "data settings"})
    service.script("os.vhd", blob_error(503, "ServerBusy"))
    service.script("data.vhd", Answer(after_ms=NEVER_MS))
    settings, warnings = asked(service, "os.vhd", "plain.vhd", "missing.vhd", "data.vhd", limit_seconds=1.5)
    assert settings == (None, None, None, None)
    for name, cause in (
        ("os.vhd", "the service answered 503"),
        ("missing.vhd", "the service answered 404"),
        ("data.vhd", "did not answer in time"),
    ):
        uri = service.uri(name).partition("?")[0]
        assert any(f"`{uri}`" in warning and cause in warning for warning in warnings), warnings
    assert len(warnings) == 3


@pytest.mark.parametrize("way", WAYS)
def test_encryption_settings_are_asked_for_directly_if_the_proxy_is_none(
    service: HostService, way: str
) -> None:
    service.create_page_blob("os.vhd", metadata={"DiskEncryptionSettings": "os settings"})
    service.create_page_blob("data.vhd", metadata={"DiskEncryptionSettings": "data settings"})
    with broken_proxy(way) as broken:
        settings, warnings = asked(service, "os.vhd", "data.vhd", proxy=broken.uri, limit_seconds=4.0)
    assert settings == ("os settings", "data settings")
    (warning,) = warnings
    assert "directly, because the proxy failed: " in warning
    assert broken.uri.rpartition("@")[2] in warning


def test_encryption_settings_are_asked_for_directly_if_the_proxy_wants_a_password(
    service: HostService,
) -> None:
    service.create_page_blob("os.vhd", metadata={"DiskEncryptionSettings": "os settings"})
    # It answers as a proxy would, and then as the service itself.
    service.script("os.vhd", Answer(407), USUAL)
    settings, warnings = asked(service, "os.vhd", proxy=f"http://{service.address}")
    assert settings == ("os settings",)
    assert len(warnings) == 1
    assert "407" in warnings[0]
