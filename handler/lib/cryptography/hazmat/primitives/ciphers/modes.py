"""See `cryptography`, which is a stand-in."""

from __future__ import annotations

from .... import Unavailable as CBC

__all__ = ["CBC"]
