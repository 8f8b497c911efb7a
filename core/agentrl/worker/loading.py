"""Loading the agent of a worker, with the standing endpoint in place before its module is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit

from agentrl.agents.binding import BoundAgent, bind_agent
from agentrl.environ import DISABLE_PLUGINS
from agentrl.plugins import Plugins
from agentrl.worker.protocol import Message
from agentrl.worker.variables import endpoint_variables, make_standing

__all__ = ["load_agent"]


def load_agent(load: Message) -> BoundAgent:
    """The agent that a ``load`` message names. Raises what ``Plugins.get`` and ``bind_agent`` raise."""
    endpoint = load["endpoint"]
    make_standing(endpoint_variables(endpoint["base_url"], endpoint["api_key"]))
    _bypass_proxies(endpoint["base_url"], os.environ)
    # As the environment would have it: what is disabled need not be installed beside this agent.
    plugins = Plugins(environ={DISABLE_PLUGINS: ",".join(load["disabled"])})
    agent = plugins.adapt_agent(plugins.get("agents", load["agent"]))
    return bind_agent(agent, load["kwargs"], name=load["agent"], allow_sync=True)


def _bypass_proxies(base_url: str, environ: MutableMapping[str, str]) -> None:
    """Have every HTTP client reach the gateway directly, whatever proxies the environment names for the rest."""
    host = urlsplit(base_url).hostname or ""
    for name in ("NO_PROXY", "no_proxy"):
        listed = [each.strip() for each in environ.get(name, "").split(",") if each.strip()]
        if host not in listed:
            environ[name] = ",".join([*listed, host])
