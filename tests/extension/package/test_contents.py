"""What the extension package must contain, and what not."""

from __future__ import annotations

import email
import json
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from handler import build
from tests.extension.package.unpacked import Unpacked

COMMANDS = ("installCommand", "enableCommand", "updateCommand", "disableCommand", "uninstallCommand")


@pytest.fixture
def archive(package: Path) -> Iterator[zipfile.ZipFile]:
    """Opens the zip."""
    with zipfile.ZipFile(package) as opened:
        yield opened


def test_manifest_is_a_list_of_one_with_all_commands_and_booleans(archive: zipfile.ZipFile) -> None:
    document = json.loads(archive.read("HandlerManifest.json"))
    assert isinstance(document, list)
    (element,) = document
    manifest = element["handlerManifest"]
    for command in COMMANDS:
        path, verb = manifest[command].split(" ")
        assert path in archive.namelist()
        assert verb == command[: -len("Command")]
    assert manifest["rebootAfterInstall"] is False
    assert manifest["reportHeartbeat"] is False
    # With any other value the agent omits install in an update.
    assert manifest["updateMode"] == "UpdateWithInstall"
    # A quota would slow the handler down.
    assert "resourceLimits" not in element


def test_entries_are_plain_files_with_paths_inside_the_package(archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        assert not name.is_absolute()
        assert ".." not in name.parts
        assert stat.S_ISREG(entry.external_attr >> 16)
    manifests = [name for name in archive.namelist() if name.endswith("HandlerManifest.json")]
    assert manifests == ["HandlerManifest.json"]


def test_only_our_own_module_is_compiled(archive: zipfile.ZipFile) -> None:
    compiled = [name for name in archive.namelist() if name.endswith((".so", ".pyd", ".pyc"))]
    assert compiled == ["lib/vmsnapshot/_native.abi3.so"]


def test_our_package_is_complete(archive: zipfile.ZipFile) -> None:
    sources = {f"lib/{path.relative_to(build.PACKAGE.parent)}" for path in build.PACKAGE.rglob("*.py")}
    assert sources
    assert sources <= set(archive.namelist())


def test_every_package_of_others_has_its_requirements_and_its_licence(
    archive: zipfile.ZipFile,
) -> None:
    names = archive.namelist()
    metadata = [
        email.message_from_bytes(archive.read(name)) for name in names if name.endswith(".dist-info/METADATA")
    ]
    present = {_normalized(document["Name"]) for document in metadata}
    assert {"azure-storage-blob", "azure-core", "aiohttp"} <= present
    for document in metadata:
        for requirement in document.get_all("Requires-Dist") or []:
            # Conditional requirements too: an older Python needs what a newer one has built in.
            if "extra ==" not in requirement:
                required = _normalized(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
                assert required in present | {"cryptography"}, f"{document['Name']} requires {requirement}"
    folders = {name.split("/")[1] for name in names if ".dist-info/" in name}
    licensed = {name.split("/")[1] for name in names if re.search(r"\.dist-info/.*LICEN[CS]E", name)}
    assert licensed == folders
    assert "LICENSE" in names


def test_same_input_gives_the_same_package(tmp_path: Path) -> None:
    files = {"b": b"second", "a/c": b"first" * 1000}
    build.write_zip(tmp_path / "one.zip", files)
    build.write_zip(tmp_path / "other.zip", dict(reversed(files.items())))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_files_of_the_same_name_are_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "one.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vmsnapshot/__init__.py", "")
    with pytest.raises(ValueError, match="vmsnapshot/__init__"):
        build.package_files(b"", [wheel])


def test_second_unpacking_over_the_first_changes_nothing(whole: Unpacked) -> None:
    def files() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in whole.directory.rglob("*")
            if path.is_file() and path.name != "__main__.py"
        }

    before = files()
    whole.unpack()
    assert files() == before


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
