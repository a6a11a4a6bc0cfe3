"""Chooses the HTTP proxy for a blob, from ``/etc/waagent.conf`` or else from the environment.

The agent does the same for itself (its ``common/utils/restutil.py``), but it does not pass its proxy on in
the environment of a handler. `vmsnapshot.proxy` has the part that the command line shares.
"""

from __future__ import annotations

from collections.abc import Mapping

import vmsnapshot
from vmsnapshot import ArgumentsError
from vmsnapshot.handler.secret import SasUri, keep_out
from vmsnapshot.proxy import environment_proxies, proxy_for, read_proxy

HOST_KEY = "HttpProxy.Host"
PORT_KEY = "HttpProxy.Port"
USER_AGENT = f"vmsnapshot/{vmsnapshot.__version__}"
"""What a proxy is told about this program. The engine says the same."""


class OptionalProxy:
    """A proxy that is left out from its first failure on, by all who share this object."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri
        """``http://[USER:PASSWORD@]HOST:PORT``, or `None` for none."""
        self.has_worked = False
        """Whether the service has answered a request through it."""

    def leave_out(self) -> None:
        """Has all later requests made directly, so that none of them waits for the proxy again.

        Not if it has worked: it may be the only way, and one slow upload must not cost the next ones.
        """
        if not self.has_worked:
            self.uri = None


class Proxies:
    """The proxies of this machine.

    ``HttpProxy.Host`` and ``HttpProxy.Port`` win over ``https_proxy`` and ``http_proxy`` for every scheme.
    ``no_proxy`` applies to both. A host without a usable port means no proxy at all, as it does for the
    agent. A guessed port could only be right on a VM whose agent cannot connect.

    A variable of the environment that cannot be an HTTP proxy is a defect: no disk that needs it is reached,
    and the report says why. The report itself is sent directly, because it would not arrive otherwise.
    """

    def __init__(self, waagent_configuration: Mapping[str, str]) -> None:
        self._proxies = environment_proxies()
        self._defects: dict[str, str] = {}
        self._optional: dict[str | None, OptionalProxy] = {}
        self.warnings: tuple[str, ...] = ()
        """Warnings for the log."""
        for scheme in ("http", "https"):
            if scheme in self._proxies:
                self._read(scheme, self._proxies[scheme])
        host, port = (_value_of(waagent_configuration, key) for key in (HOST_KEY, PORT_KEY))
        if not host:
            return
        for scheme in ("http", "https"):
            self._proxies.pop(scheme, None)
        self._defects.clear()
        self.warnings = ()
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        problem = None
        if not port:
            problem = f"there is no {PORT_KEY}"
        elif not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            problem = f"{PORT_KEY} is not a port"
        else:
            try:
                proxy = read_proxy(f"http://{shown}:{port}")
            except ArgumentsError:
                problem = "it is not a host"
            else:
                self._proxies.update(dict.fromkeys(("http", "https"), proxy.uri))
        if problem:
            self.warnings = (
                f"waagent.conf sets {HOST_KEY}, but {problem}; like the agent, the extension uses no proxy",
            )

    def for_uri(self, uri: SasUri) -> str | None:
        """Returns the proxy for one blob as ``http://[USER:PASSWORD@]HOST:PORT``, or `None` for none."""
        proxy = proxy_for(uri.expose(), self._proxies)
        return None if proxy in self._defects else proxy

    def optional_for(self, uri: SasUri) -> OptionalProxy:
        """As `for_uri`, for requests that are made directly if the proxy fails. All its blobs share one."""
        proxy = self.for_uri(uri)
        return self._optional.setdefault(proxy, OptionalProxy(proxy))

    def defect_for(self, uri: SasUri) -> str | None:
        """Returns why the proxy of one blob cannot be used, or `None` if it can or there is none."""
        return self._defects.get(proxy_for(uri.expose(), self._proxies) or "")

    def _read(self, scheme: str, text: str) -> None:
        name = f"{scheme}_proxy"
        try:
            proxy = read_proxy(text)
        except ArgumentsError as error:
            self._defects[text] = f"{error}, in the variable {name} (hint: {error.hint})"
            self.warnings += (self._defects[text],)
        else:
            self._proxies[scheme] = proxy.uri
            for secret in proxy.secrets:
                keep_out(secret)
            if proxy.warning:
                self.warnings += (f"{name}: {proxy.warning}",)


def _value_of(configuration: Mapping[str, str], key: str) -> str:
    value = configuration.get(key, "").strip()
    # The agent writes "None" for an unset option.
    return "" if value == "None" else value
