"""Tests of `vmsnapshot.handler.network`."""
