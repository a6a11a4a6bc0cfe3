"""Gives every test of the shell an engine that does what it is told, and an environment without a proxy."""

from __future__ import annotations

import pytest

from tests.unit import fake_native
from tests.unit.fake_native import FakeNative

fake_native.make_importable()

from vmsnapshot import recovery  # noqa: E402  (needs an engine, real or not)
from vmsnapshot.cli import commands as cli  # noqa: E402


class Command:
    """Runs the command line in this process and keeps what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: str) -> int:
        status = cli.main(arguments)
        self.out, self.err = self._capsys.readouterr()
        return status


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    fake = FakeNative()
    monkeypatch.setattr(cli, "_native", fake)
    monkeypatch.setattr(recovery, "_native", fake)
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return fake


@pytest.fixture
def command(native: FakeNative, capsys: pytest.CaptureFixture[str]) -> Command:
    assert native.calls == []
    return Command(capsys)
