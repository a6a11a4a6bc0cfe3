"""Tests of the extension package: the content of the zip, how its commands start, the packages in it."""
