"""The set-up itself: the real agent with our WireServer and an extension of a few lines of shell.

If this fails, the results of the other tests mean nothing.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.agent.agent import Agent
from tests.support.filesystems import ScratchFilesystems
from tests.support.isolation import Sandbox
from tests.support.wire_server import Requested, RequestedSettings, WireServer

# Its message is what it decrypted with the key that the agent stored.
SCRIPT = """\
#!/bin/sh
[ "$1" = enable ] || exit 0
settings=config/$ConfigSequenceNumber.settings
field() { sed "s/.*\\"$1\\": \\"\\([^\\"]*\\)\\".*/\\1/" "$settings"; }
key=../$(field protectedSettingsCertThumbprint)
plain=$(field protectedSettings | base64 -d |
    openssl cms -decrypt -inform DER -recip "$key.crt" -inkey "$key.prv" | sed 's/"/\\\\"/g')
cat > "status/$ConfigSequenceNumber.status" <<END
[{"status": {"status": "success", "code": 0, "formattedMessage": {"lang": "en-US", "message": "$plain"}}}]
END
"""

COMMANDS = ("install", "enable", "update", "disable", "uninstall")


@pytest.fixture
def shell_extension(scratch: ScratchFilesystems) -> Path:
    """Makes an extension's package that is only a script."""
    commands = {f"{verb}Command": f"main.sh {verb}" for verb in COMMANDS}
    manifest = [{"name": "shell", "version": 1.0, "handlerManifest": commands}]
    path = scratch.directory / "shell.zip"
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("HandlerManifest.json", json.dumps(manifest))
        package.writestr("main.sh", SCRIPT)
    return path


def test_the_agent_installs_an_extension_that_can_decrypt_its_settings_and_reports_its_status(
    scratch: ScratchFilesystems,
    agent_package: Path,  # noqa: ARG001 (must be there)
    shell_extension: Path,
) -> None:
    with (
        Sandbox() as sandbox,
        WireServer(
            sandbox, scratch.directory, role_guid="c0ffee00-0000-4000-8000-000000000002"
        ) as wire_server,
        Agent(sandbox, wire_server) as agent,
    ):
        wire_server.publish("1.0.0", shell_extension)
        for number, cipher in enumerate(("des3", "aes-256-cbc"), start=5):
            settings = RequestedSettings(number, {}, {"secret": cipher}, cipher)
            wire_server.request(Requested("1.0.0", settings=settings))
            if number == 5:
                agent.start()
            handler = agent.round().handler
            assert handler is not None
            assert (handler["handlerVersion"], handler["status"]) == ("1.0.0", "Ready"), agent.log_tail()
            reported = handler["runtimeSettingsStatus"]
            assert reported["sequenceNumber"] == number
            message = reported["settingsStatus"]["status"]["formattedMessage"]["message"]
            assert json.loads(message) == {"secret": cipher}
        assert agent.commands() == ["install", "enable", "enable"]
        assert wire_server.unknown_requests == []
