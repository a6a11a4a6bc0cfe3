"""Tests of the settings of a job: the envelope, the parser, the protected settings."""
