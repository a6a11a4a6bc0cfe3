"""What Azure Backup asks for: the settings of one backup job.

parser          parses them once, into types that cannot be wrong
mode            who takes the snapshots: the guest (blob by blob) or the host (all disks in one call)
protected       decrypts the protected settings
"""
