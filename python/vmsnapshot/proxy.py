"""Finds the HTTP proxy that the environment asks for.

The engine uses one proxy for all blobs of a run. The environment may name a proxy for some hosts and none for
others. If it does not give the same answer for all blobs, this is an error and not a guess.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence

from vmsnapshot.errors import ArgumentsError

# WireServer and the metadata service of an Azure VM. Both answer only on the VM's own link. Through a proxy a
# request would reach the services of the proxy's machine, or none.
PLATFORM_HOSTS = frozenset({"168.63.129.16", "169.254.169.254"})


def proxy_from_environment(blobs: Sequence[str]) -> str | None:
    """Finds the proxy for `blobs` in ``https_proxy``, ``http_proxy`` and ``no_proxy``. `None` means no proxy.

    Raises:
        ArgumentsError: the environment gives different answers for different blobs.
    """
    proxies = environment_proxies()
    answers = {proxy_for(blob, proxies) for blob in blobs}
    if len(answers) > 1:
        raise ArgumentsError(
            "the environment asks for different proxies for different blobs, and a run uses one for all",
            code="proxy-ambiguous",
            hint="give `--proxy URL` or `--no-proxy`",
        )
    return answers.pop() if answers else None


def environment_proxies() -> dict[str, str]:
    """Reads the proxies by scheme, as `urllib.request` does. The key ``no`` holds ``no_proxy``."""
    return urllib.request.getproxies_environment()


def proxy_for(uri: str, proxies: Mapping[str, str]) -> str | None:
    """Finds the proxy for one URI in `proxies`, which has the form of `environment_proxies`.

    ``no_proxy`` means what it means to `urllib.request`: it lists suffixes, and ``*`` matches every host. A
    loopback host never uses a proxy, because the request would reach the proxy's own loopback.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        host = parts.hostname or ""
    except ValueError:
        # Not a URI. The code that uses it reports the error.
        return None
    proxy = proxies.get(parts.scheme.lower())
    if not proxy or host in PLATFORM_HOSTS or _is_loopback(host) or _is_in_no_proxy(host, proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_in_no_proxy(host: str, proxies: Mapping[str, str]) -> bool:
    # typeshed leaves this function out, although the documentation of urllib describes `no_proxy`.
    return bool(urllib.request.proxy_bypass_environment(host, proxies))  # type: ignore[attr-defined]
