"""The packages of others in the zip need nothing else, on every Python of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.extension.package.unpacked import Unpacked
from tests.support.appliance import ODD_LINES, appliance
from tests.support.azurite import Azurite
from tests.support.host_service import HostService

ENVIRONMENT = {"PATH": os.defpath}

_UPLOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import asyncio
from azure.storage.blob.aio import BlobClient

async def main():
    async with BlobClient.from_blob_url(sys.argv[2], connection_verify=sys.argv[3]) as blob:
        await blob.upload_blob(b"status", overwrite=True)
        assert await (await blob.download_blob()).readall() == b"status"

asyncio.run(main())
loaded = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
assert not [file for file in loaded if "site-packages" in file or "dist-packages" in file]
assert not [file for file in loaded if file.startswith(sys.argv[1]) and not file.endswith(".py")]
"""

_WRITE_STATUS = """
import sys
sys.path.insert(0, sys.argv[1])
from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.blob_writer import BlobWriter
from vmsnapshot.handler.secret import SasUri

with Background() as background:
    writer = BlobWriter(SasUri(sys.argv[2]), session=background.session)
    result = background.submit(writer.write(b"status")).result(30)
assert result.written, result.reason
"""

_ENCRYPT = """
import sys
sys.path.insert(0, sys.argv[1])
from azure.storage.blob import _encryption
try:
    _encryption.Cipher(_encryption.AES(b""), _encryption.CBC(b""), _encryption.default_backend())
except NotImplementedError as error:
    sys.exit(0 if "encryption" in str(error) else 1)
"""


def _pythons() -> list[str]:
    """Returns one Python of each version from 3.9 on."""
    found = {sys.version_info[1]: sys.executable}
    for directory in os.get_exec_path():
        for path in sorted(Path(directory).glob("python3.*")):
            named = re.fullmatch(r"python3\.(\d+)", path.name)
            if named and int(named[1]) >= 9 and _starts(path):
                found.setdefault(int(named[1]), str(path))
    return [found[minor] for minor in sorted(found)]


def _starts(python: Path) -> bool:
    # That of a version manager is a script, which needs more than a PATH or fails.
    if not os.access(python, os.X_OK):
        return False
    ran = subprocess.run([python, "-c", ""], env=ENVIRONMENT, capture_output=True, timeout=20)
    return ran.returncode == 0


def run(python: str, whole: Unpacked, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script as `bin/handler` would, and turns every warning into an error."""
    command = [python, "-I", "-S", "-B", "-X", "utf8", "-W", "error", "-c", script]
    command += [str(whole.directory / "lib"), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=50)


@pytest.mark.parametrize("python", _pythons())
def test_package_alone_can_write_and_read_a_blob(
    whole: Unpacked, azurite_https: Azurite, python: str
) -> None:
    assert azurite_https.certificates
    uri = azurite_https.sas_uri("brought-along", "rwc")
    ran = run(python, whole, _UPLOAD, uri, str(azurite_https.certificates.ca_file))
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("python", _pythons())
def test_a_malformed_header_does_not_cost_the_status(whole: Unpacked, python: str) -> None:
    with HostService() as service:
        service.create_block_blob("status")
        uri = service.uri("status")
        port = urlsplit(uri).port
        assert port
        with appliance(port, ODD_LINES["blank in a name"]) as other:
            ran = run(python, whole, _WRITE_STATUS, uri.replace(f":{port}/", f":{other}/"))
        assert (ran.returncode, ran.stderr) == (0, "")
        assert service.content("status") == b"status"


def test_stand_in_for_cryptography_names_what_is_missing(whole: Unpacked) -> None:
    ran = run(sys.executable, whole, _ENCRYPT)
    assert (ran.returncode, ran.stderr) == (0, "")
