"""Decrypts the protected settings with the openssl program and the key that the agent wrote to disk.

The plain text goes from a pipe into memory and nowhere else. No file, shell, argument or exception contains
any of it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmsnapshot.errors import VmsnapshotError
from vmsnapshot.handler.secret import Secret
from vmsnapshot.handler.settings.values import json_object

OPENSSL = "/usr/bin/openssl"
"""The default of the agent's ``OS.OpensslPath``."""

# A decryption takes about 10 ms. The limit keeps a worker from hanging if openssl does.
_LIMIT_SECONDS = 10.0

_FETCH_AGAIN = "restart the Azure Linux agent, which fetches the VM's certificates again, and back up again"
_INSTALL = "install openssl, or set OS.OpensslPath in waagent.conf"

_THUMBPRINT = re.compile(r"[0-9A-Fa-f]{40}")


class ProtectedSettingsError(VmsnapshotError):
    """The protected settings cannot be decrypted. The job continues as if there were none.

    Codes: ``bad-thumbprint``, ``no-certificate``, ``no-key``, ``no-openssl``, ``decryption-failed``,
    ``not-json``.
    """


def decrypt(
    protected_text: Secret, thumbprint: str, lib_directory: Path, *, openssl: str = OPENSSL
) -> Mapping[str, Any]:
    """Decrypts ``protectedSettings`` with the cipher that its CMS message names, and returns its JSON object.

    Raises:
        ProtectedSettingsError: the code shows which part is missing or does not match.

    Blocking: ten seconds at most, for openssl.
    """
    # The thumbprint becomes part of a file name.
    if not _THUMBPRINT.fullmatch(thumbprint):
        raise _error("the thumbprint is not 40 hexadecimal digits", "bad-thumbprint")
    certificate = lib_directory / f"{thumbprint.upper()}.crt"
    key = lib_directory / f"{thumbprint.upper()}.prv"
    if not os.access(certificate, os.R_OK):
        raise _error(f"there is no certificate `{certificate}`", "no-certificate")
    if not os.access(key, os.R_OK):
        raise _error(f"there is no key `{key}`", "no-key")
    message = _message(protected_text)
    if not message:
        raise _error("they are not base64", "decryption-failed")
    # Without -recip, openssl replaces a wrong key by a random one, and then "decrypts" one message in 256.
    plain_text = _output(
        [openssl, "cms", "-decrypt", "-inform", "DER", "-recip", str(certificate), "-inkey", str(key)],
        message,
    )
    settings = json_object(plain_text)
    # This also catches a key that does not belong to its certificate.
    if settings is None:
        raise _error("what was decrypted is not a JSON object", "not-json")
    return settings


def _message(protected_text: Secret) -> bytes:
    try:
        return base64.b64decode(protected_text.expose().encode("ascii", "ignore"))
    except binascii.Error:
        return b""


def _output(command: list[str], message: bytes) -> bytes:
    # Raise outside the exception handlers. `TimeoutExpired` contains the output so far, and an exception
    # refers to the one that was being handled.
    result: subprocess.CompletedProcess[bytes] | None = None
    started = True
    try:
        result = subprocess.run(
            command,
            input=message,
            capture_output=True,
            timeout=_LIMIT_SECONDS,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        pass
    except (OSError, ValueError):
        started = False
    if not started:
        raise _error(f"`{command[0]}` could not be started", "no-openssl")
    if result is None:
        raise _error(f"`{command[0]}` did not answer within {_LIMIT_SECONDS:.0f} s", "decryption-failed")
    if result.returncode != 0:
        raise _refusal(result.stderr.lower())
    return result.stdout


def _refusal(complaint: bytes) -> ProtectedSettingsError:
    # The messages of OpenSSL 1.1.1 and 3. They are not repeated, because openssl has seen the secret.
    if b"certificate file" in complaint:
        return _error("openssl could not read the certificate", "no-certificate")
    if b"signing key" in complaint:
        return _error("openssl could not read the key", "no-key")
    if b"unsupported" in complaint or b"disabled for fips" in complaint:
        return _error("openssl does not support their cipher on this machine", "decryption-failed")
    return _error("openssl refused them: the key is another one, or they are damaged", "decryption-failed")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.startswith("OPENSSL_")}
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **kept}


def _error(cause: str, code: str) -> ProtectedSettingsError:
    return ProtectedSettingsError(
        f"could not decrypt the protected settings: {cause}",
        code=code,
        kind="system",
        hint=_INSTALL if code == "no-openssl" else _FETCH_AGAIN,
    )
