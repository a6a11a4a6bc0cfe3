"""What tests, demo and benchmarks share: filesystems, servers, writers, the rescue; with its own tests."""
