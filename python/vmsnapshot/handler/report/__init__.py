"""What Azure Backup is told about a job.

snapshots       what became of each disk
outcome         what a job came to
status          the two status documents
telemetry       the keys and texts that go with them
"""
