"""Tests of `vmsnapshot.handler.report`."""
