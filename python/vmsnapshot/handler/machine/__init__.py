"""What the report and the freeze need to know of this machine.

configuration   ``/etc/azure/vmbackup.conf``, ``/etc/waagent.conf`` and the settings for applications
disks           which disks a mount lies on, which of them are temporary, and their LUNs
sizes           how much the disks hold
facts           what every report says of the machine
processes       names of processes that a reused process id does not fool
"""
