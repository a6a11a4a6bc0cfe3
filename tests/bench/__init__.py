"""The benchmarks: what a window costs, beside how it is done today and beside what it must cost at least."""
