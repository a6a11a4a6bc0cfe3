"""``make demo``: the main job, from the filesystems to the snapshots read back, on what it makes itself."""
