"""Tests of `vmsnapshot.handler.agent`."""
