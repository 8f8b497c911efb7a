"""The plugin: recognises what CAMEL's agents are, and what makes them.

It is loaded in every run, so it imports CAMEL, which takes seconds, only for an object that is one of these.
"""

from __future__ import annotations

from agentrl import hookimpl
from agentrl_camel.recognition import factory_of, is_agent


@hookimpl
def agentrl_adapt_agent(obj: object) -> object | None:
    """A ``ChatAgent``, or a factory of one, as an agentrl agent.

    Raises ``ConfigError`` for one of which no copies can be made, and a factory that needs what nothing provides.
    """
    if is_agent(obj):
        from agentrl_camel.adapter import AdaptedAgent

        return AdaptedAgent(obj)
    factory = factory_of(obj)
    if factory is None:
        return None
    from agentrl_camel.adapter import AdaptedFactory

    return AdaptedFactory(factory)
