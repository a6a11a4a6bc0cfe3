"""Fixtures: the command line in this process, a stand-in for the engine, and a disk for the real command."""

from __future__ import annotations

import pytest

from tests.conftest import ArmRescue
from tests.support import fake_native
from tests.support.fake_native import FakeNative
from tests.support.filesystems import ScratchFilesystem, ScratchFilesystems

fake_native.make_importable()

from vmsnapshot.cli import commands as cli  # noqa: E402  (needs an engine, real or not)


class Command:
    """Runs the command line in this process and stores what it wrote."""

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
    """Puts a stand-in into the engine's place and removes every proxy from the environment."""
    fake = FakeNative()
    monkeypatch.setattr(cli, "_native", fake)
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return fake


@pytest.fixture
def command(native: FakeNative, capsys: pytest.CaptureFixture[str]) -> Command:
    assert native.calls == []
    return Command(capsys)


@pytest.fixture
def disk(
    compiled_engine: None,  # noqa: ARG001 (requested for its effect)
    scratch: ScratchFilesystems,
    rescue: ArmRescue,
) -> ScratchFilesystem:
    """Returns an ext4 for the real command, with the rescue armed."""
    filesystem = scratch.make_on_loop("disk")
    rescue([filesystem.mount_point])
    return filesystem
