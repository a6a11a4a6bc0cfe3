"""The command ``vmsnapshot``.

commands            the four commands and their exit statuses
arguments           the options and the help
blob_list           reads the list of SAS URIs that ``--blobs-from`` names
progress            shows on standard error which phase a run is in
report_file         writes the file that ``--report`` names
readable, tables    the text for people, and its layout
streams             standard output and standard error; a failure of either never fails a run
"""

from __future__ import annotations

from vmsnapshot.cli.commands import main

__all__ = ["main"]
