"""How a worker reaches the host and the blobs."""

from __future__ import annotations

from dataclasses import dataclass

from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.proxies import Proxies


@dataclass(frozen=True)
class Connections:
    """The event loop, the proxies and the host's address of one process."""

    background: Background
    """Runs everything that is sent outside the window."""
    proxies: Proxies
    host_address: str
    """The host as ``HOST`` or ``HOST:PORT``. Calls to it never use a proxy."""
