"""The plugin: recognises an agent of the SDK."""

from __future__ import annotations

import sys

from agentrl import hookimpl


@hookimpl
def agentrl_adapt_agent(obj: object) -> object | None:
    """An ``agents.Agent`` as an agentrl agent.

    Whoever has one has imported the SDK, which takes a second that no other run should have to wait.
    """
    sdk = sys.modules.get("agents")
    if sdk is None or not hasattr(sdk, "RunConfig"):  # Many a project has a package of that name.
        return None
    if not isinstance(obj, sdk.Agent):
        return None
    from agentrl_openai_agents.adapter import AdaptedAgent

    return AdaptedAgent(obj)
