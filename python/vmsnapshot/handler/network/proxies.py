"""Chooses the HTTP proxy for a blob, from ``/etc/waagent.conf`` or else from the environment.

The agent does the same for itself (its ``common/utils/restutil.py``), but it does not pass its proxy on in
the environment of a handler. `vmsnapshot.proxy` has the part that the command line shares.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmsnapshot.handler.secret import SasUri
from vmsnapshot.proxy import environment_proxies, proxy_for

HOST_KEY = "HttpProxy.Host"
PORT_KEY = "HttpProxy.Port"


class Proxies:
    """The proxies of this machine.

    ``HttpProxy.Host`` and ``HttpProxy.Port`` win over ``https_proxy`` and ``http_proxy`` for every scheme.
    ``no_proxy`` applies to both. A host without a usable port means no proxy at all, as it does for the
    agent. A guessed port could only be right on a VM whose agent cannot connect.
    """

    def __init__(self, waagent_configuration: Mapping[str, str]) -> None:
        self._proxies = environment_proxies()
        self.warnings: tuple[str, ...] = ()
        """Warnings for the log."""
        host, port = (_value_of(waagent_configuration, key) for key in (HOST_KEY, PORT_KEY))
        if not host:
            return
        for scheme in ("http", "https"):
            self._proxies.pop(scheme, None)
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            shown = f"[{host}]" if ":" in host else host
            self._proxies.update(dict.fromkeys(("http", "https"), f"http://{shown}:{port}"))
        else:
            problem = f"{PORT_KEY} is not a port" if port else f"there is no {PORT_KEY}"
            self.warnings = (
                f"waagent.conf sets {HOST_KEY}, but {problem}; like the agent, the extension uses no proxy",
            )

    def for_uri(self, uri: SasUri) -> str | None:
        """Returns the proxy for one blob as ``http://HOST:PORT``, or `None` for a direct connection."""
        return proxy_for(uri.expose(), self._proxies)


def _value_of(configuration: Mapping[str, str], key: str) -> str:
    value = configuration.get(key, "").strip()
    # The agent writes "None" for an unset option.
    return "" if value == "None" else value
