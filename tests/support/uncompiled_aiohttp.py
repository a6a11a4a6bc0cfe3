"""A plugin of pytest that has the tests use aiohttp without its compiled modules.

The extension package brings along aiohttp like that. aiohttp reads the variable when it is imported, so
pytest loads this plugin before any test (``addopts`` in ``pyproject.toml``).
"""

from __future__ import annotations

import os

os.environ["AIOHTTP_NO_EXTENSIONS"] = "1"
