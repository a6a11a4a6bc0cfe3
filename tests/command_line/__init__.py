"""Tests of the Python shell: arguments, words, files, exit statuses; with a stand-in for the engine."""
