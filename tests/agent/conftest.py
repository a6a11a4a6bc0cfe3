"""Fixtures: a VM for each test, with the real agent."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmsnapshot
from tests.agent.agent import PACKAGE, Agent
from tests.agent.vm import Vm
from tests.conftest import ArmRescue, require
from tests.support.azurite import Azurite
from tests.support.filesystems import REPOSITORY, ScratchFilesystems
from tests.support.isolation import Sandbox
from tests.support.wire_server import WireServer

EXTENSION_PACKAGE = REPOSITORY / f"dist/VMSnapshotLinux-{vmsnapshot.__version__}.zip"
ROLE_GUID = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture(scope="session")
def agent_package() -> Path:
    """Returns the unpacked agent."""
    require(Path("/usr/bin/python3").exists(), "needs the system's Python at /usr/bin/python3 for the agent")
    for tool in ("ip", "unshare", "nsenter", "openssl"):
        require(shutil.which(tool) is not None, f"needs {tool}: see .ci/system-packages")
    require((PACKAGE / ".unpacked").exists(), "needs the agent: run tests/agent/fetch")
    return PACKAGE


@pytest.fixture(scope="session")
def extension_package() -> Path:
    """Returns the extension package as it is published."""
    require(EXTENSION_PACKAGE.exists(), f"needs {EXTENSION_PACKAGE.name}: run `make extension`")
    return EXTENSION_PACKAGE


@pytest.fixture
def vm(
    request: pytest.FixtureRequest,
    scratch: ScratchFilesystems,
    rescue: ArmRescue,
    azurite_http: Azurite,
    agent_package: Path,  # noqa: ARG001 (must be there)
    extension_package: Path,
) -> Iterator[Vm]:
    """Makes a VM with two disks on which the agent runs. The rescue thaws what is still frozen."""
    disks = (scratch.make_on_loop("data"), scratch.make_on_loop("logs"))
    rescue([disk.mount_point for disk in disks], 55.0)
    with Sandbox(disks) as sandbox:
        sandbox.forward(int(azurite_http.endpoint.rpartition(":")[2]))
        with (
            WireServer(sandbox, scratch.directory, role_guid=ROLE_GUID) as wire_server,
            Agent(sandbox, wire_server) as agent,
        ):
            wire_server.publish(vmsnapshot.__version__, extension_package)
            name = re.sub(r"[^a-z0-9]+", "-", request.node.name)
            vm = Vm(name, sandbox, wire_server, agent, azurite_http, disks, vmsnapshot.__version__)
            vm.create_blobs()
            yield vm
            assert wire_server.unknown_requests == []
