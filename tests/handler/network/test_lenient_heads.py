"""What an appliance adds to the head of an answer does not cost the reports or the calls to the host."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.appliance import ODD_LINES, appliance
from tests.support.host_service import Answer, HostService
from vmsnapshot.handler.network import lenient_heads
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.blob_writer import BlobWriter
from vmsnapshot.handler.network.guest import ENCRYPTION_SETTINGS_HEADER, disk_encryption_settings
from vmsnapshot.handler.network.host import pre_snapshot
from vmsnapshot.handler.network.proxies import OptionalProxy
from vmsnapshot.handler.secret import SasUri, Secret

odd_line = pytest.mark.parametrize("lines", ODD_LINES.values(), ids=ODD_LINES.keys())


@pytest.fixture
def background() -> Iterator[Background]:
    with Background() as background:
        yield background


@odd_line
def test_a_blob_is_written_whatever_lines_an_appliance_adds(
    service: HostService, background: Background, lines: bytes
) -> None:
    service.create_block_blob("status")
    uri = service.uri("status")
    port = urlsplit(uri).port
    assert port
    with appliance(port, lines) as other:
        writer = BlobWriter(SasUri(uri.replace(f":{port}/", f":{other}/")), session=background.session)
        result = background.submit(writer.write(b"report")).result(timeout=30)
    assert (result.written, result.reason) == (True, None)
    assert service.content("status") == b"report"


@odd_line
def test_the_host_is_asked_whatever_lines_an_appliance_adds(
    service: HostService, background: Background, lines: bytes
) -> None:
    port = urlsplit(service.uri("any")).port
    assert port
    with appliance(port, lines) as other:
        asking = pre_snapshot(
            background.session, f"127.0.0.1:{other}", task_id="BT-1", token=Secret("t"), details=None
        )
        answer = background.submit(asking).result(timeout=30)
    assert (answer.telemetry_status, answer.error) == (200, None)


@odd_line
def test_encryption_settings_are_read_whatever_lines_an_appliance_adds(
    service: HostService, background: Background, lines: bytes
) -> None:
    service.create_page_blob("disk")
    service.script("disk", Answer(headers=((ENCRYPTION_SETTINGS_HEADER, "vault"),)), operation="GET metadata")
    uri = service.uri("disk")
    port = urlsplit(uri).port
    assert port
    warnings: list[str] = []
    with appliance(port, lines) as other:
        asking = disk_encryption_settings(
            background.session,
            [SasUri(uri.replace(f":{port}/", f":{other}/"))],
            proxy=OptionalProxy(),
            warn=warnings.append,
        )
        settings = background.submit(asking).result(timeout=30)
    assert (settings, warnings) == (("vault",), [])


GOOD_LINE = st.from_regex(rb"\A[A-Za-z-]+: ?[!-~]([ -~]*[!-~])?\Z")


@given(st.lists(GOOD_LINE), st.lists(st.sampled_from(sorted(ODD_LINES.values()))))
def test_good_lines_stay_as_they_are_beside_odd_ones(good: list[bytes], odd: list[bytes]) -> None:
    odd_lines = [line for lines in odd for line in lines.split(b"\r\n")[:-1]]
    kept = lenient_heads.repaired([*good, *odd_lines, b""])
    assert kept[: len(good)] == good
    assert kept[-1] == b""


@given(st.lists(st.binary().filter(lambda line: b"\r" not in line and b"\n" not in line)))
def test_what_is_repaired_needs_no_second_repair(lines: list[bytes]) -> None:
    once = lenient_heads.repaired(lines)
    assert lenient_heads.repaired(once) == once
