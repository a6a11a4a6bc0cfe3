"""Decides which HTTP proxy the environment asks for.

The engine takes one proxy for all blobs of a run; the environment may want one for some hosts and none for
others. Where it does not give one answer for all, that is said, not guessed.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence

from vmsnapshot.errors import ArgumentsError

# The platform's own services of an Azure VM, WireServer and the metadata service. They answer only on the
# machine's own link: a proxy would reach those of its own machine, or nothing.
PLATFORM_HOSTS = frozenset({"168.63.129.16", "169.254.169.254"})


def proxy_from_environment(blobs: Sequence[str]) -> str | None:
    """Finds the proxy for `blobs` in ``https_proxy``, ``http_proxy`` and ``no_proxy``; none to go direct.

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
    """Reads the proxies by scheme, as `urllib.request` does, in either case; ``no`` is ``no_proxy``."""
    return urllib.request.getproxies_environment()


def proxy_for(uri: str, proxies: Mapping[str, str]) -> str | None:
    """Finds the proxy for one URI in `proxies`, which are in the form of `environment_proxies`.

    ``no_proxy`` is read as `urllib.request` reads it: suffixes, and ``*`` for everything. A loopback host is
    never reached through a proxy: it would be the proxy's own loopback.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        host = parts.hostname or ""
    except ValueError:
        # No URI at all: whoever uses it says so, in its own words.
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
    # The published stubs leave this function out, although urllib's own documentation describes `no_proxy`.
    return bool(urllib.request.proxy_bypass_environment(host, proxies))  # type: ignore[attr-defined]
