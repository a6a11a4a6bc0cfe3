"""The layers: which crate may depend on what. (Where unsafe code may be, the compiler checks.)"""

from __future__ import annotations

import json
import shutil
import subprocess

from tests.conftest import require
from tests.support.filesystems import REPOSITORY


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
    network = {
        "hyper",
        "hyper-util",
        "tokio",
        "rustls",
        "tokio-rustls",
        "rustls-native-certs",
        "rustls-webpki",
    }
    for name, dependencies in found.items():
        if name != "vmsnapshot-engine":
            assert not dependencies & network, name
        if name != "vmsnapshot-native":
            assert "pyo3" not in dependencies, name
    assert network <= found["vmsnapshot-engine"]
    assert "pyo3" in found["vmsnapshot-native"]


def test_core_depends_only_on_crates_that_do_no_input_or_output() -> None:
    assert packages()["vmsnapshot-core"] == {"serde", "strum", "thiserror", "time"}


def test_each_layer_depends_only_on_those_below_it() -> None:
    own = {
        name: {item for item in dependencies if item.startswith("vmsnapshot-")}
        for name, dependencies in packages().items()
    }
    assert own == {
        "vmsnapshot-core": set(),
        "vmsnapshot-sys": {"vmsnapshot-core"},
        "vmsnapshot-watchdog": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-window": {"vmsnapshot-core", "vmsnapshot-sys"},
        "vmsnapshot-engine": {"vmsnapshot-core", "vmsnapshot-sys", "vmsnapshot-window"},
        "vmsnapshot-native": {"vmsnapshot-core", "vmsnapshot-engine"},
    }
