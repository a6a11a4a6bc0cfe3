"""The files that the Azure Linux agent and the handler exchange, and the handler's own state.

environment     HandlerEnvironment.json, the sequence number, and the directories
events          warnings and errors, which the agent forwards as telemetry
state           what the handler records between two commands
status_file     the status file of one job
"""
