"""HTTP clients: which library the installed openai package is built on, clients that many agents share, and proxies.

Every HTTP client reads the proxy variables of the environment when it is made: ``http_proxy`` and its like in either
case, and ``no_proxy`` for the hosts that are reached directly.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from urllib.parse import urlsplit

__all__ = [
    "Unclosable",
    "UnclosableSync",
    "client_library",
    "direct_loopback",
    "reach_directly",
    "reach_loopback_directly",
]

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_EXCEPT = ("NO_PROXY", "no_proxy")
_LOOPBACK = ("127.0.0.1", "localhost")
_EVERYTHING = "*"
"""Bypasses every proxy, but only where it is the whole value."""


@lru_cache(1)
def client_library() -> ModuleType:
    """The HTTP library whose clients the installed openai package accepts: ``httpx2`` since version 3, else ``httpx``.

    Read from the package's metadata, which is faster than importing the package.
    """
    try:
        requirements = importlib.metadata.requires("openai") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    second = any(re.match(r"httpx2\b", each) and "extra ==" not in each for each in requirements)
    return importlib.import_module("httpx2" if second else "httpx")


class Unclosable:
    """A mixin that goes before an async client class: closing the client, or leaving ``async with``, does nothing."""

    async def aclose(self) -> None:
        """Do nothing, because the client is shared."""

    async def __aenter__(self) -> Unclosable:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Do nothing, because the client is shared."""


class UnclosableSync:
    """The same mixin for a synchronous client class."""

    def close(self) -> None:
        """Do nothing, because the client is shared."""

    def __enter__(self) -> UnclosableSync:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing, because the client is shared."""


def direct_loopback(variables: Mapping[str, str], url: str | None = None) -> dict[str, str]:
    """The environment variables that, set beside ``variables``, keep clients from reaching this machine by a proxy.

    ``url`` is one whose host they are to reach directly too, such as another address of this machine. Empty where no
    proxy is set. Both spellings of ``no_proxy`` are returned, because clients differ in which they read first, and
    hosts that are named there already are kept.
    """
    if not any(value and name.lower() in _PROXIES for name, value in variables.items()):
        return {}
    named = [host.strip() for name in _EXCEPT for host in variables.get(name, "").split(",")]
    hosts = dict.fromkeys(filter(None, [*named, *_LOOPBACK, (url and urlsplit(url).hostname) or ""]))
    direct = _EVERYTHING if _EVERYTHING in hosts else ",".join(hosts)
    return dict.fromkeys(_EXCEPT, direct)


def reach_loopback_directly() -> None:
    """Set the environment so that clients this process makes from now on reach this machine without a proxy.

    A proxy could not reach a server that listens on this machine's loopback interface, and would see its keys. Safe
    to call again.
    """
    os.environ.update(direct_loopback(os.environ))


def reach_directly(url: str) -> None:
    """As ``reach_loopback_directly``, for the host of ``url`` as well."""
    os.environ.update(direct_loopback(os.environ, url))
