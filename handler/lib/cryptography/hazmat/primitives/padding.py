"""See `cryptography`, which is a stand-in."""

from __future__ import annotations

from ... import Unavailable as PKCS7

__all__ = ["PKCS7"]
