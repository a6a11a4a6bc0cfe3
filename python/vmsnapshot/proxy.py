"""Decides which HTTP proxy the environment asks for.

The engine takes one proxy for all blobs of a run; the environment may want one for some hosts and none for
others. Where it does not give one answer for all, that is said, not guessed.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
import urllib.request
from collections.abc import Sequence

from vmsnapshot.errors import ArgumentsError


def proxy_from_environment(blobs: Sequence[str]) -> str | None:
    """Finds the proxy for `blobs` in ``https_proxy``, ``http_proxy`` and ``no_proxy``; none to go direct.

    Read as `urllib.request` reads them (either case, suffixes and ``*`` in ``no_proxy``), but a loopback host
    is never reached through a proxy: it would be the proxy's own loopback.

    Raises:
        ArgumentsError: the environment gives different answers for different blobs.
    """
    proxies = urllib.request.getproxies_environment()
    answers = {_proxy_of(blob, proxies) for blob in blobs}
    if len(answers) > 1:
        raise ArgumentsError(
            "the environment asks for different proxies for different blobs, and a run uses one for all",
            code="proxy-ambiguous",
            hint="give `--proxy URL` or `--no-proxy`",
        )
    return answers.pop() if answers else None


def _proxy_of(blob: str, proxies: dict[str, str]) -> str | None:
    try:
        parts = urllib.parse.urlsplit(blob)
        host = parts.hostname or ""
    except ValueError:
        # No URI at all: `prepare` says so, in its own words.
        return None
    proxy = proxies.get(parts.scheme.lower())
    if not proxy or _is_loopback(host) or _is_in_no_proxy(host, proxies):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_in_no_proxy(host: str, proxies: dict[str, str]) -> bool:
    # The published stubs leave this function out, although urllib's own documentation describes `no_proxy`.
    return bool(urllib.request.proxy_bypass_environment(host, proxies))  # type: ignore[attr-defined]
