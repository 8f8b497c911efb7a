"""Loading the agent of a worker, with the standing endpoint in place before its module is imported."""

from __future__ import annotations

from agentrl.agents.binding import BoundAgent, bind_agent
from agentrl.environ import DISABLE_PLUGINS
from agentrl.plugins import Plugins
from agentrl.worker.protocol import Message
from agentrl.worker.variables import endpoint_variables, make_standing

__all__ = ["load_agent"]


def load_agent(load: Message) -> BoundAgent:
    """The agent that a ``load`` message names.

    Raises what ``Plugins.get`` and ``bind_agent`` raise.
    """
    endpoint = load["endpoint"]
    make_standing(endpoint_variables(endpoint["base_url"], endpoint["api_key"]))
    # As the environment would have it: what is disabled need not be installed beside this agent.
    plugins = Plugins(environ={DISABLE_PLUGINS: ",".join(load["disabled"])})
    agent = plugins.adapt_agent(plugins.get("agents", load["agent"]))
    return bind_agent(agent, load["kwargs"], name=load["agent"], allow_sync=True, outcomes=load["outcomes"])
