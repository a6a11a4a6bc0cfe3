"""Fixtures: the package that ``make extension`` builds, and the same unpacked as the agent does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmsnapshot
from tests.conftest import require
from tests.extension.package.unpacked import Unpacked
from tests.support.filesystems import REPOSITORY


@pytest.fixture(scope="session")
def package() -> Path:
    """Returns the zip."""
    path = REPOSITORY / f"dist/VMSnapshotLinux-{vmsnapshot.__version__}.zip"
    require(path.exists(), f"needs {path.name}: run `make extension`")
    return path


@pytest.fixture
def unpacked(package: Path, tmp_path: Path) -> Iterator[Unpacked]:
    """Unpacks the package without the packages of others, which a command does not need to start."""
    yield from _unpacked(package, tmp_path, with_third_parties=False)


@pytest.fixture
def whole(package: Path, tmp_path: Path) -> Iterator[Unpacked]:
    """Unpacks the whole package."""
    yield from _unpacked(package, tmp_path, with_third_parties=True)


def _unpacked(package: Path, parent: Path, *, with_third_parties: bool) -> Iterator[Unpacked]:
    extension = Unpacked(package, parent, with_third_parties=with_third_parties)
    yield extension
    # pytest would keep the temporary directory for a while.
    shutil.rmtree(extension.directory)
