"""The database of workload.conf: chapter 9 of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extension.conftest import Vm, final, message, telemetry

WORKLOAD = Path("/etc/azure/workload.conf")


@pytest.fixture
def workload(vm: Vm) -> Iterator[Path]:
    """Where the file is outside of the sandbox. It is put back afterwards."""
    path = vm.extension.sandbox.path(WORKLOAD)
    before = path.read_text() if path.exists() else None
    yield path
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_text(before)
    vm.extension.configure()


def configure(path: Path, **options: str) -> None:
    lines = "".join(f"{name} = {value}\n" for name, value in options.items())
    path.write_text(f"[workload]\n{lines}")
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("options", "code", "name"),
    [
        (
            {"workload_name": "mariadb", "credString": "--socket=/missing.sock", "linux_user": "root"},
            506,
            "FailedWorkloadConnectionError",
        ),
        (
            {"workload_name": "postgres", "credString": "--host=/missing", "linux_user": "root"},
            506,
            "FailedWorkloadConnectionError",
        ),
        ({"workload_name": "oracle", "linux_user": "oracle"}, 503, "FailedWorkloadInvalidWorkloadName"),
        ({"workload_name": "mysql", "linux_user": "root", "role": "x"}, 502, "FailedWorkloadInvalidRole"),
        ({"workload_name": "mysql"}, 505, "FailedWorkloadAuthorizationMissing"),
    ],
)
def test_database_that_cannot_be_held_costs_no_backup_unless_the_owner_says_so(
    vm: Vm, workload: Path, options: dict[str, str], code: int, name: str
) -> None:
    configure(workload, **options)
    job = vm.job(vm.new_number(), mode="onlyGuest")
    report = job.run()
    assert final(report) == ("success", "1", code)
    assert message(report).startswith("Workload Patch failed with warning message: ")
    assert f"StatusCode.{name}," in message(report)
    assert telemetry(report)["extErrorCode"] == name
    assert len(report["snapshotInfo"]) == 2

    vm.extension.configure(OnAppFailureDoFsFreeze="false")
    vm.service.forget_requests()
    report = vm.job(vm.new_number(), mode="onlyGuest").run()
    assert final(report) == ("error", "2", 2)
    assert message(report).startswith("Failing backup as OnAppFailureDoFsFreeze is set to false")
    assert vm.service.requests("PUT snapshot") == []
