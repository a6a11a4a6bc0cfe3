"""Tests of the command as its users see it: arguments, output, files, exit statuses, signals.

Most of them run the Python part with a stand-in for the engine
(`tests.support.fake_native`), and need neither root nor a compiled module.
"""
