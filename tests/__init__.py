"""The tests; ``tests.support`` is shared with the demo and the benchmarks."""
