"""The benchmarks: the cost of a window, compared with today's way and with the least possible cost."""
