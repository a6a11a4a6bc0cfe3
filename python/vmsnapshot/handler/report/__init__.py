"""The report that Azure Backup receives about a job.

snapshots       the result per disk
outcome         the outcome of the job, as codes
status          the two status documents
telemetry       the additional keys and texts of a report
"""
