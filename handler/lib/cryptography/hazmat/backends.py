"""See `cryptography`, which is a stand-in."""

from __future__ import annotations

from .. import Unavailable as default_backend

__all__ = ["default_backend"]
