"""Lets the handler be tested where the engine is not compiled, and gives its tests a host service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import fake_native
from tests.support.host_service import HostService

fake_native.make_importable()


@pytest.fixture(scope="module")
def running_service() -> Iterator[HostService]:
    """Runs one host service for all tests of a module."""
    with HostService() as service:
        yield service


@pytest.fixture
def service(running_service: HostService) -> HostService:
    """Returns the module's host service, with no requests, blobs or scripts of an earlier test."""
    running_service.reset()
    return running_service
