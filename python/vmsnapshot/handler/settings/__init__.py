"""What Azure Backup asks for: the settings of one backup job.

envelope        the settings file, before anything in it is decrypted or understood
wire            the settings as types that cannot be wrong
parser          makes those types out of a file's content
values          what a single value of the JSON is
job             what can be told of a job from its settings even when they cannot be used
mode            who takes the snapshots: the guest (blob by blob) or the host (all disks in one call)
protected       decrypts the protected settings
"""
