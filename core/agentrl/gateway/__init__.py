"""The gateway: what an agent takes for the OpenAI API, and what records its every token."""

from __future__ import annotations

from agentrl.gateway.contract import Call, SessionSettings
from agentrl.gateway.relay import RelayGateway
from agentrl.gateway.service import Gateway
from agentrl.gateway.session import Session

__all__ = ["Call", "Gateway", "RelayGateway", "Session", "SessionSettings"]
