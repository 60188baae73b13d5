"""Proxies of the environment, which stand between this machine and a server without a word."""

from __future__ import annotations

from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_hint(url: str) -> str:
    """What to try if a server does not answer: nothing if no proxy is asked on the way to it.

    Args:
        url: The server's.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    host = parts.hostname or ""
    if not (proxies.get(parts.scheme) or proxies.get("all")) or proxy_bypass(host):
        return ""
    variable = f"{parts.scheme.upper()}_PROXY"
    return f" (by the proxy that {variable} names; to reach it without, add {host} to NO_PROXY)"
