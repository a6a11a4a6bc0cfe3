"""What the Azure Linux agent gives the handler, and what it reads.

environment     HandlerEnvironment.json, the sequence number, the handler's directories
events          warnings and errors, which the agent sends on as telemetry
state           what the handler remembers between two commands
status_file     one job's status file
"""
