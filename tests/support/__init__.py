"""What tests, demo and benchmarks share: scratch filesystems, servers, writers, and the rescue."""
