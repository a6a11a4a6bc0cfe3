"""The command ``vmsnapshot``.

commands            the four commands, and what their exit statuses mean
arguments           the options, and the help
blob_list           the list of SAS URIs that ``--blobs-from`` names
progress            says on standard error which phase a run is in
report_file         the file that ``--report`` names
readable, tables    what people read: the words, and their layout
streams             standard output and standard error, so that neither can make a run fail
"""

from __future__ import annotations

from vmsnapshot.cli.commands import main

__all__ = ["main"]
