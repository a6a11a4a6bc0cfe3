"""What the tests of the Python API share: URIs, a host call, checks of errors and of objects."""

from __future__ import annotations

from typing import Any

import pytest

import vmsnapshot
from tests.support.filesystems import ScratchFilesystem
from tests.support.host import Host

SIGNATURE = "c2lnbmF0dXJl"
HOST_URI = "http://168.63.129.16/metadata/recsvc/snapshot/dosnapshot"
HOST_HEADERS = [("Backup", "true"), ("Content-type", "application/json")]


def uri(blob: str = "disk", *, query: str = f"sv=2018-03-28&sr=b&sig={SIGNATURE}%3D&sp=rw") -> str:
    """Returns a blob's URI on port 9 of this machine, where no server listens."""
    return f"http://127.0.0.1:9/disks/{blob}?{query}"


def refusal(
    plan: vmsnapshot.Plan, blobs: list[str] | None = None, /, **options: Any
) -> vmsnapshot.PrepareError:
    """Returns the error of a ``prepare`` that must fail, after a check that it holds no signature."""
    with pytest.raises(vmsnapshot.PrepareError) as raised:
        vmsnapshot.prepare(plan, blobs or [], **options)
    assert SIGNATURE not in str(raised.value) + repr(raised.value) + str(raised.value.hint)
    return raised.value


def assert_frozen(value: object) -> None:
    """Checks that no attribute of ``value`` can be set."""
    for name in [name for name in dir(value) if not name.startswith("_")] + ["anything"]:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def plan_of(disk: ScratchFilesystem) -> vmsnapshot.Plan:
    """Returns a plan of one scratch filesystem and nothing else."""
    return vmsnapshot.plan(include=[f"mount={disk.mount_point}"])


def host_call(host: Host) -> vmsnapshot.HostCall:
    """Returns a call to ``host`` that asks for the snapshot of one disk."""
    return vmsnapshot.HostCall(host.uri, headers=[("Backup", "true")], body=b'{"diskIds": [-1]}')
