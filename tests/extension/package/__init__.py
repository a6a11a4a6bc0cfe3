"""Tests of the extension package: what is in the zip, how its commands start, what it brings along."""
