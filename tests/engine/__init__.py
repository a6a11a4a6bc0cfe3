"""Tests of the engine: plan, freeze, snapshot, thaw, watchdog, recovery, and the Python API.

Most of them freeze real filesystems and need root. The others test what the Python API refuses, the
classes of the compiled module, and the layers.
"""
