"""The gateway: an OpenAI-compatible API for agents that records every token which the policy samples for them.

Every name here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl._lazy import attributes

if TYPE_CHECKING:
    from agentrl.gateway.completer import EngineCompleter
    from agentrl.gateway.contract import Call, SessionSettings
    from agentrl.gateway.gateway import Gateway
    from agentrl.gateway.relay import RelayCompleter
    from agentrl.gateway.session import Session

__all__ = ["Call", "EngineCompleter", "Gateway", "RelayCompleter", "Session", "SessionSettings"]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "agentrl.gateway.completer": ["EngineCompleter"],
        "agentrl.gateway.contract": ["Call", "SessionSettings"],
        "agentrl.gateway.gateway": ["Gateway"],
        "agentrl.gateway.relay": ["RelayCompleter"],
        "agentrl.gateway.session": ["Session"],
    },
)
