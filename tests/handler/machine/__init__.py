"""Tests of `vmsnapshot.handler.machine`."""
