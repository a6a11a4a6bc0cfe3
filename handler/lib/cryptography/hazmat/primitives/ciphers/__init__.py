"""See `cryptography`, which is a stand-in."""

from __future__ import annotations

from .... import Unavailable as Cipher

__all__ = ["Cipher"]
