"""A proxy that cannot be used, and what a job does about it, through ``enable``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.extension.conftest import Job, Vm, cause, final
from tests.support.isolation_process import PRIVATE_ADDRESS as ADDRESS
from tests.support.protected_settings import object_str

CONFIGURATION = "/etc/waagent.conf"


@pytest.fixture(scope="module")
def proxied(machine: Vm) -> Vm:
    """A VM whose blobs are at an address for which the proxy is used."""
    machine.extension.sandbox.forward(machine.service.port, host=ADDRESS)
    return machine


@pytest.fixture
def agents_proxy(proxied: Vm, vm: Vm) -> Iterator[Vm]:
    """The agent is configured with a proxy that is down."""
    sandbox = proxied.extension.sandbox
    text = "HttpProxy.Host=127.0.0.1\\nHttpProxy.Port=1\\n"
    sandbox.run("sh", "-c", f"printf '{text}' > {CONFIGURATION}")
    yield vm
    sandbox.run("rm", CONFIGURATION)


def job_of(vm: Vm, *, port: int | None = None) -> Job:
    """Returns a job whose blobs are at `ADDRESS`. With a `port`, its disks are at that port."""
    job = vm.job(vm.new_number(), mode="onlyGuest")

    def moved(uri: str) -> str:
        return uri.replace(vm.service.address, f"{ADDRESS}:{vm.service.port}")

    disks = [moved(vm.service.uri(name)) for name in job.disks]
    if port is not None:
        disks = [uri.replace(f":{vm.service.port}/", f":{port}/") for uri in disks]
    job.protected["objectStr"] = object_str({"blobSASUri": disks})
    job.protected["statusBlobUri"] = moved(job.protected["statusBlobUri"])
    job.protected["logsBlobUri"] = moved(job.protected["logsBlobUri"])
    return job


def test_vm_whose_proxy_is_down_is_backed_up_directly_with_a_warning(agents_proxy: Vm) -> None:
    report = job_of(agents_proxy).run()
    assert final(report) == ("success", "1", 1)
    log = agents_proxy.extension.log()
    refused = "could not connect to the proxy http://127.0.0.1:1: connection refused"
    assert "connected directly, because the proxy http://127.0.0.1:1 failed: " in log
    assert f"the status blob: connected directly, because the proxy failed: {refused}" in log


def test_report_names_the_proxy_if_the_disks_cannot_be_reached_directly_either(agents_proxy: Vm) -> None:
    report = job_of(agents_proxy, port=1).run()
    assert final(report) == ("error", "76", 76)
    told = cause(report)
    assert "through the proxy http://127.0.0.1:1: could not connect to" in told
    assert f"; directly: could not connect to {ADDRESS}:1: connection refused" in told
    assert "check the configured proxy" in told


@pytest.mark.usefixtures("proxied")
def test_report_says_why_a_variable_cannot_be_a_proxy(vm: Vm) -> None:
    report = job_of(vm).run(http_proxy="http://127.0.0.1:3128/proxy.pac")
    assert final(report) == ("error", "76", 76)
    assert "PAC file" in cause(report)
    assert "http_proxy" in cause(report)
