"""Fixtures for every test: scratch filesystems, the rescue thaw, blob services, and what they need.

Many tests need root and filesystem tools. Where something is missing, a test fails on CI (where the
variable CI is set). Elsewhere it is skipped with the reason.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, Protocol

import pytest

from tests.support.azurite import Azurite
from tests.support.certificates import Certificates, make_certificates
from tests.support.fake_native import is_compiled
from tests.support.fault_server import FaultServer
from tests.support.filesystems import REPOSITORY, ScratchFilesystems, loop_devices_below, scratch_directory
from tests.support.mounts import mounts_below
from tests.support.processes import obey_signals
from tests.support.rescue import RCU_EXPEDITED, RescueThaw

obey_signals()

FILESYSTEM_TOOLS = ("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "losetup", "mount", "umount")


StartFaultServer = Callable[..., FaultServer]
"""What the ``fault_server`` fixture gives: starts a `FaultServer` with its arguments."""


class ArmRescue(Protocol):
    """What the ``rescue`` fixture gives: arms a rescue thaw for some mount points."""

    def __call__(
        self, paths: Sequence[Path], after_seconds: float = 10.0, *, linger_seconds: float = 5.0
    ) -> RescueThaw:
        """Arms the rescue. The fixture cancels it after the test, and fails the test if it had to thaw.

        A test that wants the rescue to fire calls ``wait`` or ``cancel`` itself and checks the result.
        """


def require(is_there: bool, reason: str) -> None:
    """Returns if ``is_there``. Otherwise fails the test on CI and skips it elsewhere, with the reason."""
    if is_there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have this: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a test with ``needs_root`` if it uses the fixture `root`, directly or through another."""
    if "root" in getattr(item, "fixturenames", ()):
        item.add_marker("needs_root")


@pytest.fixture(scope="session")
def root() -> None:
    """Needs root and the filesystem tools. A test that uses it is marked with ``needs_root``."""
    require(os.geteuid() == 0, "needs root, to mount and freeze scratch filesystems")
    for tool in FILESYSTEM_TOOLS:
        require(shutil.which(tool) is not None, f"needs {tool}: see .ci/system-packages")


@pytest.fixture(scope="session")
def compiled_engine() -> None:
    """Needs the compiled engine. Without it, `fake_native` may be imported in its place."""
    require(is_compiled(), "needs the compiled engine: run `make`")


@pytest.fixture(scope="session")
def session_directory() -> Iterator[Path]:
    """Yields a directory on disk for the servers of the session."""
    with scratch_directory() as directory:
        yield directory


@pytest.fixture
def scratch(root: None) -> Iterator[ScratchFilesystems]:  # noqa: ARG001 (requested for its effect)
    """Makes filesystems and takes them down after the test, which fails if it left expedited RCU changed."""
    rcu_before = RCU_EXPEDITED.read_text() if RCU_EXPEDITED.exists() else ""
    with scratch_directory() as directory, ScratchFilesystems(directory) as filesystems:
        yield filesystems
    rcu_after = RCU_EXPEDITED.read_text() if RCU_EXPEDITED.exists() else ""
    if rcu_after != rcu_before:
        RCU_EXPEDITED.write_text(rcu_before)
        pytest.fail("rcu_expedited was not put back")


@pytest.fixture
def rescue(scratch: ScratchFilesystems) -> Iterator[ArmRescue]:  # noqa: ARG001 (must outlive the rescue)
    """Arms rescue thaws; see `ArmRescue`."""
    armed: list[RescueThaw] = []

    def arm(paths: Sequence[Path], after_seconds: float = 10.0, *, linger_seconds: float = 5.0) -> RescueThaw:
        thaw = RescueThaw(paths, after_seconds, linger_seconds=linger_seconds)
        armed.append(thaw)
        return thaw

    yield arm
    # After `wait` or `cancel` in the test itself, `thawed` is set.
    unexpected = [path for thaw in armed if thaw.thawed is None for path in thaw.cancel()]
    if unexpected:
        pytest.fail(f"the rescue had to thaw {', '.join(map(str, unexpected))}")


@pytest.fixture(scope="session")
def certificates(session_directory: Path) -> Certificates:
    """Returns a certificate authority and a server certificate for this machine."""
    return make_certificates(session_directory)


@pytest.fixture(scope="session")
def azurite_http(session_directory: Path) -> Iterator[Azurite]:
    """Runs one Azurite over HTTP for the whole session. Each test uses blobs of its own."""
    require_azurite()
    with Azurite(session_directory) as azurite:
        yield azurite


@pytest.fixture(scope="session")
def azurite_https(session_directory: Path, certificates: Certificates) -> Iterator[Azurite]:
    """Runs one Azurite over HTTPS for the whole session. Each test uses blobs of its own."""
    require_azurite()
    with Azurite(session_directory, certificates) as azurite:
        yield azurite


@pytest.fixture
def fault_server() -> Iterator[StartFaultServer]:
    """Starts fault servers and ends them after the test. See `StartFaultServer`."""
    servers: list[FaultServer] = []

    def start(*arguments: object, **options: object) -> FaultServer:
        server = FaultServer(*arguments, **options)  # type: ignore[arg-type]
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_over() -> Iterator[None]:
    """Fails the session if one of its filesystems or loop devices is left over."""
    yield
    work = REPOSITORY / ".work"
    # Another test session may run at the same time.
    ours = f"{work}/run-{os.getpid()}-"
    left = [str(mount.mount_point) for mount in mounts_below(work) if str(mount.mount_point).startswith(ours)]
    left += [f"{device} on {file}" for device, file in loop_devices_below(work) if str(file).startswith(ours)]
    assert not left, f"left over: {left}"


def require_azurite() -> None:
    """Needs what ``make`` installs for the blob service."""
    require(shutil.which("node") is not None, "needs node: see .ci/system-packages")
    require((REPOSITORY / "tests/azurite/node_modules").is_dir(), "needs Azurite: run `make test`")
