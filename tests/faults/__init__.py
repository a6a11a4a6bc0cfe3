"""The kill matrix: whatever happens, everything is thawed by the deadline and the truth is told."""
