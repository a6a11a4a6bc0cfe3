"""Builds the extension package: ``python handler/build.py --wheels DIRECTORY --output FILE.zip``.

It only collects files and compiles nothing. The compiled module is the one that ``make build`` has written to
python/vmsnapshot, or that of our own wheel (``make release``). The bundled packages come from the wheels that
requirements.txt pins. These are downloaded once. The same input gives the same zip.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

HANDLER = Path(__file__).resolve().parent
REPOSITORY = HANDLER.parent
REQUIREMENTS = HANDLER / "requirements.txt"
PACKAGE = REPOSITORY / "python/vmsnapshot"
MODULE = PACKAGE / "_native.abi3.so"

# The parts of a wheel that run on every Python, and those that its licence requires. No compiled module is
# among them, because each works with a single version of Python.
_KEPT = re.compile(
    r".*\.py|certifi/cacert\.pem|[^/]*\.dist-info/(METADATA|licenses/.*[^/]|LICENSE[^/]*|NOTICE[^/]*)"
)
_LEFT_OUT = re.compile(r"certifi/tests/.*|aiohttp/(pytest_plugin|test_utils)\.py")

# The earliest time that zip supports. The agent gives every file the time of unpacking anyway.
_TIME = (1980, 1, 1, 0, 0, 0)


def main() -> int:
    """Builds the package and prints its path."""
    parser = argparse.ArgumentParser(description="builds the extension package")
    parser.add_argument("--wheels", type=Path, required=True, help="where downloaded wheels are kept")
    parser.add_argument("--output", type=Path, required=True, help="the zip to write")
    parser.add_argument("--own-wheel", type=Path, help="take the compiled module from this wheel of ours")
    arguments = parser.parse_args()
    if arguments.own_wheel is not None:
        with zipfile.ZipFile(arguments.own_wheel) as archive:
            module = archive.read("vmsnapshot/_native.abi3.so")
    elif MODULE.exists():
        module = MODULE.read_bytes()
    else:
        print(f"error: {MODULE} is missing\nhint: run `make build`", file=sys.stderr)
        return 1
    write_zip(arguments.output, package_files(module, pinned_wheels(arguments.wheels)))
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")
    return 0


def pinned_wheels(directory: Path) -> list[Path]:
    """Returns the wheels that requirements.txt pins. Downloads them if ``directory`` lacks one."""
    pinned = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", REQUIREMENTS.read_text()))
    directory.mkdir(parents=True, exist_ok=True)
    if not pinned <= _by_hash(directory).keys():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", str(directory)]
        # The same files on every machine. The hashes choose one of those that match.
        command += ["--python-version", "3.9", "--implementation", "cp", "--abi", "cp39"]
        command += ["--platform", "manylinux2014_x86_64", "--requirement", str(REQUIREMENTS)]
        subprocess.run(command, check=True)
    found = _by_hash(directory)
    # Wheels of an earlier requirements.txt are not used.
    return sorted(found[digest] for digest in pinned)


def package_files(module: bytes, wheels: list[Path]) -> dict[str, bytes]:
    """Returns the files of the package by their names in the zip."""
    files: dict[str, bytes] = {}
    for name, content in _parts(module, wheels):
        if name in files:
            raise ValueError(f"two parts of the package have a file `{name}`")
        files[name] = content
    return files


def write_zip(output: Path, files: dict[str, bytes]) -> None:
    """Writes the zip. It replaces an older one only after it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as package:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # The agent ignores modes, and makes every file executable for its owner. These are for people.
            entry.external_attr = (0o100755 if name == "bin/handler" else 0o100644) << 16
            entry.create_system = 3
            package.writestr(entry, content)
    partial.replace(output)


def _parts(module: bytes, wheels: list[Path]) -> Iterator[tuple[str, bytes]]:
    yield "HandlerManifest.json", (HANDLER / "HandlerManifest.json").read_bytes()
    yield "LICENSE", (REPOSITORY / "LICENSE").read_bytes()
    for name in ("bin", "lib"):
        yield from _tree(HANDLER / name, name)
    yield from _tree(PACKAGE, "lib/vmsnapshot")
    yield "lib/vmsnapshot/_native.abi3.so", module
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if _KEPT.fullmatch(name) and not _LEFT_OUT.fullmatch(name):
                    yield f"lib/{name}", archive.read(name)


def _tree(directory: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        # No compiled modules: a developer's tree may have one for another Python. No stubs for type checkers.
        is_wanted = path.suffix not in (".so", ".pyc", ".pyi") and path.name != "py.typed"
        if path.is_file() and is_wanted:
            yield f"{name}/{path.relative_to(directory).as_posix()}", path.read_bytes()


def _by_hash(directory: Path) -> dict[str, Path]:
    return {hashlib.sha256(wheel.read_bytes()).hexdigest(): wheel for wheel in directory.glob("*.whl")}


if __name__ == "__main__":
    sys.exit(main())
