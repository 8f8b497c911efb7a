"""Proxies named in the environment, and how this machine is reached past them.

Every HTTP client reads these variables when it is made: ``http_proxy`` and its like in either case, and ``no_proxy``
for the hosts that are reached directly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["direct_loopback", "reach_loopback_directly"]

_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_EXCEPT = ("NO_PROXY", "no_proxy")
_LOOPBACK = ("127.0.0.1", "localhost")
_EVERYTHING = "*"
"""It says so only where it stands alone."""


def direct_loopback(variables: Mapping[str, str]) -> dict[str, str]:
    """What to set beside ``variables`` so that no client sends a request to this machine through a proxy.

    Nothing where no proxy is named. Both spellings are set, since clients differ in which they read first.
    """
    if not any(value and name.lower() in _PROXIES for name, value in variables.items()):
        return {}
    named = [host.strip() for name in _EXCEPT for host in variables.get(name, "").split(",")]
    hosts = dict.fromkeys(filter(None, [*named, *_LOOPBACK]))
    direct = _EVERYTHING if _EVERYTHING in hosts else ",".join(hosts)
    return dict.fromkeys(_EXCEPT, direct)


def reach_loopback_directly() -> None:
    """Let the clients that this process makes from now on reach this machine past any proxy.

    A proxy could not reach what is served here for the process itself, and would be shown its keys. Safe to call again.
    """
    os.environ.update(direct_loopback(os.environ))
