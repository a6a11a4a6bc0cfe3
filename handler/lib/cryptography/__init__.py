"""Replaces the package of this name, so that azure-storage-blob can be imported without it.

``azure.storage.blob`` imports it for *client-side* encryption of blobs, which the extension never uses. The
real package needs cffi, which is compiled for a single version of Python and cannot be bundled for all of
them. This does not affect TLS, which is OpenSSL through the standard library.

The names that ``azure/storage/blob/_encryption.py`` imports are here. Using any of them raises.
"""

from __future__ import annotations

from typing import Any, NoReturn


class Unavailable:
    """Raises when it is used. Every name that is imported from here is this class."""

    def __new__(cls, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("client-side encryption of blobs is not part of this package")
