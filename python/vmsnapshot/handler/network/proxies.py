"""Decides which HTTP proxy the handler uses for a blob: ``/etc/waagent.conf``, then the environment.

As the agent does for itself (its ``common/utils/restutil.py``), for it does not put its own proxy into a
handler's environment. What both have in common with the command line is in `vmsnapshot.proxy`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmsnapshot.handler.secret import SasUri
from vmsnapshot.proxy import environment_proxies, proxy_for

HOST_KEY = "HttpProxy.Host"
PORT_KEY = "HttpProxy.Port"


class Proxies:
    """The proxies of this machine.

    ``HttpProxy.Host`` and ``HttpProxy.Port`` win over ``https_proxy`` and ``http_proxy``, whatever the
    scheme; ``no_proxy`` is honoured for both. A host without a usable port means no proxy at all: the agent
    does so, and a port guessed here could only be right where the agent itself fails.
    """

    def __init__(self, waagent_configuration: Mapping[str, str]) -> None:
        self._proxies = environment_proxies()
        self.warnings: tuple[str, ...] = ()
        """Sentences for the log."""
        host, port = (_value_of(waagent_configuration, key) for key in (HOST_KEY, PORT_KEY))
        if not host:
            return
        for scheme in ("http", "https"):
            self._proxies.pop(scheme, None)
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            shown = f"[{host}]" if ":" in host else host
            self._proxies.update(dict.fromkeys(("http", "https"), f"http://{shown}:{port}"))
        else:
            problem = f"{PORT_KEY} is no port" if port else f"there is no {PORT_KEY}"
            self.warnings = (
                f"waagent.conf sets {HOST_KEY}, but {problem}: no proxy is used, as by the agent itself",
            )

    def for_uri(self, uri: SasUri) -> str | None:
        """Finds the proxy for one blob, as ``http://HOST:PORT``; none to go direct."""
        return proxy_for(uri.expose(), self._proxies)


def _value_of(configuration: Mapping[str, str], key: str) -> str:
    value = configuration.get(key, "").strip()
    # The agent's word for "unset".
    return "" if value == "None" else value
