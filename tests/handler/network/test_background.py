"""The event loop beside the worker's main thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import pytest

from tests.support.host_service import NEVER_MS, Answer, HostService
from vmsnapshot.handler.network.background import Background


async def _status_of(background: Background, uri: str) -> int:
    async with background.session().get(uri) as response:
        return response.status


async def _wait_until_cancelled(started: threading.Event) -> None:
    started.set()
    await asyncio.Event().wait()


def test_result_of_a_coroutine_comes_back() -> None:
    async def thread_name() -> str:
        return threading.current_thread().name

    with Background() as background:
        assert background.submit(thread_name()).result(timeout=5) == "background"


def test_cancelling_the_future_cancels_the_coroutine() -> None:
    started, ended = threading.Event(), threading.Event()

    async def wait() -> None:
        try:
            await _wait_until_cancelled(started)
        finally:
            ended.set()

    with Background() as background:
        future = background.submit(wait())
        assert started.wait(timeout=5)
        future.cancel()
        assert ended.wait(timeout=5)


def test_leaving_cancels_what_is_left_and_ends_the_thread() -> None:
    started = threading.Event()
    with Background() as background:
        future = background.submit(_wait_until_cancelled(started))
        assert started.wait(timeout=5)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=5)
    assert "background" not in [thread.name for thread in threading.enumerate()]


def test_leaving_closes_a_connection_that_waits_for_an_answer(service: HostService) -> None:
    service.script("checkforsnapshot", Answer(200, after_ms=NEVER_MS))
    uri = f"http://{service.address}/machine/plugins?comp=xdisksvc&type=checkforsnapshot"
    with Background() as background:
        future = background.submit(_status_of(background, uri))
        service.wait_for("checkforsnapshot")
        session = background.session()
    assert session.closed
    assert future.cancelled()


def test_leaving_is_bounded_when_a_coroutine_does_not_let_itself_be_cancelled() -> None:
    started, let_go = threading.Event(), threading.Event()

    async def hold_on() -> None:
        started.set()
        while not let_go.is_set():
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue

    began = time.monotonic()
    with Background() as background:
        future = background.submit(hold_on())
        assert started.wait(timeout=5)
    assert time.monotonic() - began < 5.0
    let_go.set()
    future.cancel()


def test_nothing_can_be_submitted_after_leaving() -> None:
    with Background() as background:
        pass
    with pytest.raises(RuntimeError):
        background.submit(asyncio.sleep(0))


def test_proxy_of_the_environment_is_not_used(service: HostService, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 1 refuses connections.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    service.script("checkforsnapshot", Answer(204))
    uri = f"http://{service.address}/machine/plugins?comp=xdisksvc&type=checkforsnapshot"
    with Background() as background:
        assert background.submit(_status_of(background, uri)).result(timeout=10) == 204


def test_certificate_of_an_unknown_authority_is_refused(azurite_https: object) -> None:
    endpoint = azurite_https.endpoint  # type: ignore[attr-defined]
    with Background() as background, pytest.raises(aiohttp.ClientConnectorCertificateError):
        background.submit(_status_of(background, endpoint)).result(timeout=10)


def test_lack_of_trusted_certificates_is_warned_of_once(
    azurite_https: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    endpoint = azurite_https.endpoint  # type: ignore[attr-defined]
    warnings: list[str] = []
    with Background(warn=warnings.append) as background:
        background.warm_up().result(timeout=20)
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                background.submit(_status_of(background, endpoint)).result(timeout=10)
    (warning,) = warnings
    assert "could not load any trusted certificate of the system" in warning
    assert "missing.pem" in warning


@pytest.mark.usefixtures("compiled_engine")
def test_modules_do_not_import_what_is_slow_to_import() -> None:
    modules = ("background", "blob_writer", "guest", "host", "proxies")
    program = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module('vmsnapshot.handler.network.' + name)\n"
        "print(sorted({'aiohttp', 'asyncio', 'azure'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("compiled_engine")
def test_warming_up_imports_the_sdk_while_the_caller_goes_on() -> None:
    program = (
        "import sys\n"
        "from vmsnapshot.handler.network.background import Background\n"
        "with Background() as background:\n"
        "    warm = background.warm_up()\n"
        "    went_on = not warm.done()\n"
        "    warm.result(timeout=20)\n"
        "    print(went_on, 'azure.storage.blob.aio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "True True"
