"""``make demo``: the main job on filesystems of its own, with the snapshots read back."""
