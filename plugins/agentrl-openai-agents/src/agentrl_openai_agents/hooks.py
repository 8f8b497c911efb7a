"""The plugin: it recognises agents of the SDK among the objects that agentrl is given."""

from __future__ import annotations

import sys

from agentrl import hookimpl


@hookimpl
def agentrl_adapt_agent(obj: object) -> object | None:
    """An ``agents.Agent`` as an agentrl agent; ``None`` for any other object.

    Whoever has such an agent has imported the SDK. Importing it here would cost every other run a second.
    """
    sdk = sys.modules.get("agents")
    if sdk is None or not hasattr(sdk, "RunConfig"):  # Other packages are called agents too.
        return None
    if not isinstance(obj, sdk.Agent):
        return None
    from agentrl_openai_agents.adapter import AdaptedAgent

    return AdaptedAgent(obj)
