"""Lets the properties of the shell be tested without a compiled engine."""

from __future__ import annotations

from tests.support import fake_native

fake_native.make_importable()
