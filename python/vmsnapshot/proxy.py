"""Finds the HTTP proxy for a blob, and reads a proxy and ``no_proxy`` as people write them.

This is the only place for these rules. What it returns is read in the same way by the engine and by aiohttp.

The engine uses one proxy for all blobs of a run. The environment may name a proxy for some hosts and none for
others. If it does not give the same answer for all blobs, this is an error and not a guess.
"""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vmsnapshot.errors import ArgumentsError

# WireServer and the metadata service of an Azure VM. Both answer only on the VM's own link. Through a proxy a
# request would reach the services of the proxy's machine, or none.
PLATFORM_HOSTS = frozenset({"168.63.129.16", "169.254.169.254"})

_DEFAULT_PORTS = {"http": 80, "https": 443}
# A name or an IPv4 address, or an IPv6 address in brackets, and perhaps a port.
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", re.ASCII)


class Proxy(NamedTuple):
    """A proxy in the one form that everything else reads. It may contain a password."""

    uri: str
    """``http://[USER:PASSWORD@]HOST:PORT``, in which user and password are percent-encoded."""
    warning: str | None = None

    @property
    def secrets(self) -> list[str]:
        """What the proxy could repeat: the password, and name and password as the header has them."""
        user_info, at, _ = self.uri.partition("://")[2].rpartition("@")
        if not at:
            return []
        credentials = urllib.parse.unquote_to_bytes(user_info)
        password = credentials.partition(b":")[2].decode(errors="replace")
        return [password, base64.b64encode(credentials).decode()]


def read_proxy(text: str) -> Proxy:
    """Reads a proxy as people write it.

    The scheme and a slash at the end may be missing. A ``%`` that is not an escape stands for itself. With
    the scheme ``https``, the proxy is spoken to in plain HTTP all the same. That is how most programs read
    it, and there is a warning.

    Raises:
        ArgumentsError: no HTTP proxy can be meant. The error repeats no part of the text.
    """
    text = text.strip().strip("\"'")
    scheme, separator, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if separator else ("http", text)
    if scheme not in _DEFAULT_PORTS:
        raise _unusable("only HTTP proxies are supported, and its scheme is neither http nor https")
    # A password may contain an `@`.
    user_info, at, authority = rest.rstrip("/").rpartition("@")
    if re.search(r"[/?#]", rest.rstrip("/")):
        raise _unusable(
            "it has a path, a query or a fragment, as the address of a PAC file has (or its password has a "
            "`/`, `?` or `#` that is not percent-encoded)"
        )
    found = _AUTHORITY.fullmatch(authority)
    if found is None or not _is_host(found[1]):
        raise _unusable("its host or port cannot be read")
    port = int(found[2]) if found[2] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise _unusable("its port is not a number from 1 to 65535")
    # `unquote_to_bytes` keeps a `%` that begins no escape. A byte that is not UTF-8 is a surrogate in the
    # text of a variable or an argument.
    name, colon, password = user_info.partition(":")
    credentials = colon.join(
        urllib.parse.quote(urllib.parse.unquote_to_bytes(part.encode(errors="surrogateescape")), safe="")
        for part in (name, password)
    )
    shown = f"{found[1].lower()}:{port}"
    warning = None
    if scheme == "https":
        warning = f"the proxy https://{shown} is spoken to in plain HTTP, although its scheme is https"
        if user_info:
            warning += "; its user name and password are sent unencrypted"
    return Proxy(f"http://{credentials}{at if user_info else ''}{shown}", warning)


def proxy_from_environment(blobs: Sequence[str]) -> str | None:
    """Finds the proxy for `blobs` in ``https_proxy``, ``http_proxy`` and ``no_proxy``. `None` means no proxy.

    The result is what the environment has, for `read_proxy`.

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

    A loopback host never uses a proxy, because the request would reach the proxy's own loopback.
    """
    try:
        parts = urllib.parse.urlsplit(uri.strip())
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        # Not a URI. The code that uses it reports the error.
        return None
    proxy = proxies.get(parts.scheme)
    if not proxy or host in PLATFORM_HOSTS or _is_loopback(host):
        return None
    return None if _is_in_no_proxy(host, port, proxies.get("no", "")) else proxy


def _unusable(defect: str) -> ArgumentsError:
    return ArgumentsError(
        f"could not read the proxy's URI: {defect}",
        code="bad-proxy",
        hint="give http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
    )


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_in_no_proxy(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether an entry of `no_proxy` matches: a name with all names below it, a glob, an address, a network.

    A name may have a dot or ``*.`` in front, and every entry may have a port. An address or a network matches
    a host that is written as an address. No name is resolved.
    """
    return any(_matches(entry.lower(), host, port) for entry in re.split(r"[\s,;]+", no_proxy) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    entry = entry.partition("://")[2] or entry
    network = _network(entry.rstrip("/"))
    if network is None:
        found = re.fullmatch(r"(.*?):(\d+)/?", entry, re.ASCII)
        if found is not None:
            if int(found[2]) != port:
                return False
            entry = found[1]
        network = _network(entry.rstrip("/"))
    if network is not None:
        address = _address(host)
        return address is not None and address in network
    # Also a dot at the end, which some people write.
    name = re.sub(r"^\*?\.", "", entry).rstrip("./")
    return bool(name) and (fnmatch.fnmatchcase(host, name) or fnmatch.fnmatchcase(host, f"*.{name}"))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(re.sub(r"^\[(.*)\](/\d+)?$", r"\1\2", text), strict=False)
    except ValueError:
        return None
