"""No error, report or output of a run has the signature of a SAS URI, whatever the URI and the server are."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmsnapshot
from tests.conftest import StartFaultServer
from tests.engine.api import plan_of
from tests.support.command import run_command
from tests.support.fault_server import Answers
from tests.support.filesystems import ScratchFilesystem

SIGNATURE = "Wq3b8+Zt0/1xQv9LmN2pR7sWcY5dFgHjKaEoUiTyB4z="
PERCENT = urllib.parse.quote(SIGNATURE, safe="")
LETTERS = SIGNATURE.translate(str.maketrans("", "", "+/="))

LOST = [
    "&sp=rw&sig=",
    "%3Fsp=rw&sig%3D",
    ";sig=",
    "%253Fsp%253Drw%2526sig%253D",
    "%25253Fsp%25253Drw%252526sig%25253D",
    "&sp=rw&SIG=",
    "%26sP=rw%26%53i%47%3d",
    "#sig=",
    "\\sig=",
    "\\nsig=",
    "sig%0D%0A=",
    "@sig=",
]

ECHOES = {
    "plain": SIGNATURE,
    "percent": PERCENT,
    "lower-case percent": PERCENT.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d"),
    "percent twice": PERCENT.replace("%", "%25"),
    "XML": SIGNATURE.replace("+", "&#43;").replace("/", "&#x2F;"),
    "JSON": SIGNATURE.replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\u003d"),
    "form": SIGNATURE.replace("+", " "),
    "URL-safe": SIGNATURE.replace("+", "-").replace("/", "_"),
    "letters": LETTERS,
    "cut": SIGNATURE[:20],
    "in lines": "\x01".join(SIGNATURE),
}


def assert_hidden(*texts: object) -> None:
    """Checks that no eight letters and digits of the signature are in ``texts`` one after another."""
    for text in map(str, texts):
        for _ in range(4):
            shown = "".join(filter(str.isalnum, text))
            for start in range(len(LETTERS) - 7):
                assert LETTERS[start : start + 8] not in shown, text
            text = urllib.parse.unquote(text)


def printed_of(uri: str, plan: vmsnapshot.Plan) -> list[object]:
    """Returns all texts that a run with ``uri`` and a host call to it give."""
    texts: list[object] = [vmsnapshot.uri_without_query(uri)]
    for unusable_blobs in ("refuse", "report"):
        try:
            blobs = [uri, "http://127.0.0.1:9/disks/other?sig=x"]
            vmsnapshot.prepare(plan, blobs, unusable_blobs=unusable_blobs, connect_timeout=0.5)  # type: ignore[call-overload, unused-ignore]
        except vmsnapshot.PrepareError as error:
            texts += [error, repr(error), error.hint, error.__cause__, error.__context__, vars(error)]
    try:
        call = vmsnapshot.HostCall(uri, headers=[], body=b"")
        texts += [call.uri, repr(call)]
    except vmsnapshot.PrepareError as error:
        texts += [error, repr(error), error.hint]
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        # Where a proxy was expected.
        vmsnapshot.prepare(plan, [], proxy=uri)
    return [*texts, raised.value, repr(raised.value), raised.value.hint, vars(raised.value)]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("lost", LOST)
def test_blob_that_lost_its_question_mark_is_refused_without_its_signature(
    plan: vmsnapshot.Plan, lost: str
) -> None:
    uri = f"http://127.0.0.1:9/disks/disk{lost}{PERCENT}"
    assert_hidden(*printed_of(uri, plan), *printed_of(uri + "?sig=x", plan))
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.prepare(plan, [uri])
    assert raised.value.code == "bad-uri"


@pytest.mark.usefixtures("root")
def test_lost_question_mark_is_named_with_a_remedy(plan: vmsnapshot.Plan) -> None:
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.prepare(plan, [f"https://host/c/b%3Fsp=rw&sig={PERCENT}"])
    assert "`?` in front of the SAS is lost or percent-encoded" in str(raised.value)
    assert raised.value.hint == "give https://ACCOUNT.HOST/CONTAINER/BLOB?SAS"


@pytest.mark.usefixtures("root")
@settings(max_examples=60, deadline=None)
@given(
    before=st.text("ab/?&;#%25:@\\. =[]\n", max_size=8),
    name=st.sampled_from(["sig", "SIG", "Sig", "%73ig", "s%2569g", "si%67", "%2573%2569%2567"]),
    equals=st.sampled_from(["=", "%3D", "%3d", "%253D", "%25253d", " =", "%20="]),
    layers=st.integers(0, 3),
    after=st.text("ab/?&;#%25:@\\. =[]\n", max_size=8),
)
def test_no_mutated_uri_shows_its_signature(
    plan: vmsnapshot.Plan, before: str, name: str, equals: str, layers: int, after: str
) -> None:
    written = SIGNATURE
    for _ in range(layers):
        written = urllib.parse.quote(written, safe="")
    assert_hidden(*printed_of(f"http://127.0.0.1:9/disks/disk{before}{name}{equals}{written}{after}", plan))


def echoing(echo: str) -> list[Answers]:
    """Returns refusals and a success that repeat ``echo`` in the body, in headers and in the reason."""
    header = echo.replace("\x01", "")
    body = f"<Error><Code>{echo}</Code><Message>Signature {echo} did not match".encode()
    refusal = f"HTTP/1.1 403 {header}\r\nContent-Length: {len(body)}\r\n"
    return [
        Answers(refusal.encode() + b"\r\n" + body),
        Answers(f"{refusal}x-ms-error-code: {header}\r\nx-ms-request-id: {header}\r\n\r\n".encode() + body),
        Answers(f"HTTP/1.1 201 {header}\r\nx-ms-snapshot: {header}\r\nContent-Length: 0\r\n\r\n".encode()),
        Answers(f"{header} HTTP/1.1 403\r\n\r\n".encode(), then_closes=True),
        # The body ends in the middle of the signature.
        Answers(refusal.encode() + b"\r\n" + body[: body.rindex(b" did") - 12], then_closes=True),
    ]


def test_signature_that_a_server_repeats_is_in_no_report(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    blobs = []
    for number, echo in enumerate(ECHOES.values()):
        for kind, answer in enumerate(echoing(echo)):
            server.script(f"disk{number}-{kind}", answer)
            blobs.append(f"{server.uri(f'disk{number}-{kind}').partition('?')[0]}?sig={PERCENT}")
    report = vmsnapshot.prepare(plan_of(disk), blobs, call_timeout=3).run()
    texts: list[Any] = [report.to_json(), report.why, repr(report)]
    for blob in report.blobs:
        assert blob.outcome != "created" or blob.snapshot is not None
        texts += [blob.body, blob.message, blob.error_code, blob.snapshot, blob.snapshot_uri, repr(blob)]
    assert_hidden(*texts)
    # The rest of the answer is still there.
    assert report.blobs[0].message is not None
    assert report.blobs[0].message.startswith("Signature ...")
    assert report.blobs[0].message.endswith(" did not match")


def test_no_signature_of_very_many_blobs_is_in_the_report(
    disk: ScratchFilesystem, fault_server: StartFaultServer
) -> None:
    server = fault_server()
    # No two have a part in common.
    signatures = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(257)]
    blobs: list[str] = []
    for signature in signatures:
        body = f"<Error><Code>x</Code><Message>Signature {signature} did not match".encode()
        head = f"HTTP/1.1 403 x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        server.script(f"disk{len(blobs)}", Answers(head + body))
        blobs.append(f"{server.uri(f'disk{len(blobs)}').partition('?')[0]}?sig={signature}")
    document = vmsnapshot.prepare(plan_of(disk), blobs, call_timeout=3).run().to_json()
    assert "did not match" in document
    assert [signature for signature in signatures if signature in document] == []


def test_signature_that_a_server_repeats_is_in_no_output(
    disk: ScratchFilesystem, fault_server: StartFaultServer, tmp_path: Any
) -> None:
    server = fault_server()
    uris = []
    for kind, answer in enumerate(echoing(SIGNATURE)):
        server.script(f"disk{kind}", answer)
        uris.append(f"{server.uri(f'disk{kind}').partition('?')[0]}?sig={PERCENT}")
    for options in ([], ["--json"]):
        path = tmp_path / f"report{len(options)}.json"
        finished = run_command(
            "snapshot",
            *options,
            "--no-proxy",
            "--blobs-from=-",
            f"--mount=mount={disk.mount_point}",
            f"--report={path}",
            standard_input="\n".join(uris),
        )
        assert finished.status == 1, finished
        assert_hidden(finished.output, finished.errors, path.read_text())


@pytest.mark.parametrize("lost", [lost for lost in LOST if "\n" not in lost])
def test_command_refuses_a_lost_question_mark_without_the_signature(
    disk: ScratchFilesystem, lost: str, tmp_path: Any
) -> None:
    for options in ([], ["--json"]):
        finished = run_command(
            "snapshot",
            *options,
            "--no-proxy",
            "--blobs-from=-",
            f"--mount=mount={disk.mount_point}",
            f"--report={tmp_path / 'report.json'}",
            standard_input=f"http://127.0.0.1:9/disks/disk{lost}{PERCENT}\n",
        )
        assert finished.status == 2, finished
        assert_hidden(finished.output, finished.errors)


@contextlib.contextmanager
def refusing_proxy(answer: bytes) -> Iterator[str]:
    """Runs a proxy that gives ``answer`` to every request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(10)
                        connection.recv(65536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("echo", [SIGNATURE, PERCENT, LETTERS])
def test_signature_that_a_proxy_repeats_is_in_no_error_and_no_warning(
    plan: vmsnapshot.Plan, echo: str
) -> None:
    with refusing_proxy(f"HTTP/1.1 403 No {echo}\r\n\r\n".encode()) as proxy:
        blob = f"https://127.0.0.1:9/disks/disk?sig={PERCENT}"
        with pytest.raises(vmsnapshot.PrepareError) as raised:
            vmsnapshot.prepare(plan, [blob], proxy=proxy)
        assert raised.value.code == "proxy-failed"
        assert "403 No ..." in str(raised.value)
        with pytest.raises(vmsnapshot.PrepareError) as directly:
            vmsnapshot.prepare(plan, [blob], proxy=proxy, unusable_proxy="direct")
    assert_hidden(raised.value, repr(raised.value), directly.value, repr(directly.value))
