"""What the report and the freeze need to know about this machine.

configuration   ``/etc/azure/vmbackup.conf``, ``/etc/waagent.conf`` and the files for applications
scripts         the configuration of the pre- and post-script
disks           the disks below a mount, their LUNs, and whether they are temporary
sizes           how much data the disks contain
facts           the facts about the machine in every report
processes       identifies processes even if their ids are reused
"""
