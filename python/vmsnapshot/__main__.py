"""Lets ``python -m vmsnapshot`` run the command ``vmsnapshot``."""

from __future__ import annotations

import sys

from vmsnapshot.cli import main

if __name__ == "__main__":
    sys.exit(main())
