"""The tests. README.md says which folder has what; the demo and the benchmarks use ``tests.support`` too."""
