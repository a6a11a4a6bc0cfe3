"""What Azure Backup asks for: the settings of one backup job.

envelope        reads and scrubs the settings file, without decrypting or parsing its content
wire            the settings as types that are always valid
parser          makes these types from the content of a file
values          checks single values of the JSON
job             what is known of a job even if its settings cannot be used
mode            chooses who takes the snapshots: the guest (per blob) or the host (all disks in one call)
protected       decrypts the protected settings
"""
