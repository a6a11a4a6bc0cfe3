"""Settings files as the agent writes them, with protected settings that openssl encrypts.

One certificate and key serve the whole session. They stand for the tenant certificate that the
agent stores.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

CIPHERS = ("des3", "aes128", "aes256")
"""The ciphers of a CMS message. Azure uses the first, and on VMs in FIPS mode the last."""

# The form in which openssl writes it when the agent unpacks its PFX.
BAG_ATTRIBUTES = (
    b"Bag Attributes\n    localKeyID: 01 00 00 00 \nsubject=DC = Windows Azure CRP Certificate Generator\n"
)


@dataclass(frozen=True)
class KeyPair:
    """A certificate as Azure makes it for a VM, and its key."""

    thumbprint: str
    certificate_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)

    def write(self, lib_directory: Path) -> None:
        """Writes both to the files that the agent uses: ``<THUMBPRINT>.crt`` and ``.prv``."""
        (lib_directory / f"{self.thumbprint}.crt").write_bytes(BAG_ATTRIBUTES + self.certificate_pem)
        (lib_directory / f"{self.thumbprint}.prv").write_bytes(BAG_ATTRIBUTES + self.key_pem)

    def encrypt(self, plain: Mapping[str, Any] | bytes, cipher: str = "des3") -> str:
        """Encrypts an object, or bytes, for this certificate. Returns a CMS message in base64."""
        content = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
        with tempfile.TemporaryDirectory() as directory:
            certificate = Path(directory) / "certificate.pem"
            certificate.write_bytes(self.certificate_pem)
            message = subprocess.run(
                ["openssl", "cms", "-encrypt", "-binary", "-outform", "DER", f"-{cipher}", str(certificate)],
                input=content,
                capture_output=True,
                check=True,
                timeout=20,
            ).stdout
        return base64.b64encode(message).decode()


def make_key_pair() -> KeyPair:
    """Makes a new pair. `key_pair` returns that of the session."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name(
        [x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "Windows Azure CRP Certificate Generator")]
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    return KeyPair(
        # SHA-1 only identifies the certificate.
        thumbprint=certificate.fingerprint(hashes.SHA1()).hex().upper(),  # noqa: S303
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


@functools.lru_cache(maxsize=1)
def key_pair() -> KeyPair:
    """Returns the session's certificate and key."""
    return make_key_pair()


def encrypt(plain: Mapping[str, Any] | bytes, cipher: str = "des3") -> str:
    """Encrypts for the session's certificate."""
    return key_pair().encrypt(plain, cipher)


def object_str(value: Any) -> str:
    """Encodes the value of an ``objectStr``."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def settings_file_text(
    public: Mapping[str, Any] | None, protected: Mapping[str, Any] | None = None, *, cipher: str = "des3"
) -> str:
    """Returns a settings file as the agent writes it: with all three keys, null for a missing value."""
    handler_settings = {
        "publicSettings": public,
        "protectedSettings": None if protected is None else encrypt(protected, cipher),
        "protectedSettingsCertThumbprint": None if protected is None else key_pair().thumbprint,
    }
    return json.dumps({"runtimeSettings": [{"handlerSettings": handler_settings}]})
