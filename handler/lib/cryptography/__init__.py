"""Stands in for the package of this name, so that azure-storage-blob can be imported without it.

``azure.storage.blob`` imports it for *client-side* encryption of blobs, which the extension never asks for.
The real one needs cffi, which is compiled for one version of Python: it cannot be brought along for all of
them. TLS is not concerned: that is OpenSSL, through the standard library.

The names that ``azure/storage/blob/_encryption.py`` imports are here, and using any of them raises.
"""

from __future__ import annotations

from typing import Any, NoReturn


class Unavailable:
    """Raises when it is used; bears every name that is imported from here."""

    def __new__(cls, *arguments: Any, **options: Any) -> NoReturn:
        raise NotImplementedError("client-side encryption of blobs is not part of this package")
