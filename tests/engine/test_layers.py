"""The layers: which crate may depend on what, where unsafe code may be, which codes Python may rely on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.conftest import require
from tests.support.filesystems import REPOSITORY
from vmsnapshot import cli


def test_every_code_that_decides_an_exit_status_exists_in_the_engine() -> None:
    sources = "".join(path.read_text() for path in Path(REPOSITORY / "rust").glob("*/src/**/*.rs"))
    for code in {*cli.NOT_THE_ARGUMENTS_CODES, cli.LEFT_FROZEN_CODE}:
        assert f'=> "{code}"' in sources, code


def packages() -> dict[str, set[str]]:
    """Returns each package of the workspace with its dependencies, without those of tests and build."""
    require(shutil.which("cargo") is not None, "needs cargo")
    output = subprocess.run(
        ["cargo", "metadata", "--offline", "--locked", "--no-deps", "--format-version=1"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    return {
        package["name"]: {item["name"] for item in package["dependencies"] if item["kind"] is None}
        for package in json.loads(output)["packages"]
    }


def test_only_the_engine_depends_on_the_network_and_only_native_on_python() -> None:
    found = packages()
    network = {"hyper", "hyper-util", "tokio", "rustls", "tokio-rustls", "rustls-native-certs"}
    for name, dependencies in found.items():
        if name != "vmsnapshot-engine":
            assert not dependencies & network, name
        if name != "vmsnapshot-native":
            assert "pyo3" not in dependencies, name
    assert network <= found["vmsnapshot-engine"]
    assert "pyo3" in found["vmsnapshot-native"]


def test_the_core_depends_on_no_crate_that_does_input_or_output() -> None:
    assert packages()["vmsnapshot-core"] == {"serde", "thiserror", "time"}


def test_each_layer_depends_only_on_those_below_it() -> None:
    own = {
        name: {item for item in dependencies if item.startswith("vmsnapshot-")}
        for name, dependencies in packages().items()
    }
    assert own == {
        "vmsnapshot-core": set(),
        "vmsnapshot-sys": {"vmsnapshot-core"},
        "vmsnapshot-watchdog": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-engine": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-native": {"vmsnapshot-core", "vmsnapshot-engine"},
    }


def test_unsafe_code_is_in_sys_only() -> None:
    for path in Path(REPOSITORY / "rust").glob("*/src/**/*.rs"):
        if path.relative_to(REPOSITORY).parts[1] != "sys":
            code = [line.partition("//")[0] for line in path.read_text().splitlines()]
            assert not any("unsafe {" in line or "unsafe impl" in line for line in code), path
