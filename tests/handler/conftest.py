"""Lets the handler be tested where the engine is not compiled."""

from __future__ import annotations

from tests.support import fake_native

fake_native.make_importable()
