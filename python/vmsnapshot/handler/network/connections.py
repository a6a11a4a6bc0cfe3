"""What a worker reaches the host and the blobs with."""

from __future__ import annotations

from dataclasses import dataclass

from vmsnapshot.handler.network.background import Background
from vmsnapshot.handler.network.proxies import Proxies


@dataclass(frozen=True)
class Connections:
    """The ways out of one process, as the configuration and the environment have them."""

    background: Background
    """Where everything runs that is sent outside the window."""
    proxies: Proxies
    host_address: str
    """The host, as ``HOST`` or ``HOST:PORT``; never through a proxy."""
