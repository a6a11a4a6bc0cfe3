"""Tests of the extension package, unpacked in a sandbox and run as the agent runs it.

A service stands for the host and the blobs, and records every request.
"""
