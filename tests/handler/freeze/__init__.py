"""Tests of `vmsnapshot.handler.freeze`."""
