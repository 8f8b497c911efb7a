"""The parts of rewards, which JSON's numbers have no room for: sent beside what an agent returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.agents.result import Reward, parts_of

__all__ = ["parts_beside", "with_parts"]

_WHOLE = "episode"
_CALLS = "calls"


def parts_beside(returned: Any) -> dict[str, Any]:
    """The parts in ``returned``, a reward or rewards by response id; empty where there are none."""
    if parts := parts_of(returned):
        return {_WHOLE: dict(parts)}
    if isinstance(returned, Mapping):
        calls = {call: dict(parts) for call, value in returned.items() if (parts := parts_of(value))}
        return {_CALLS: calls} if calls else {}
    return {}


def with_parts(returned: Any, beside: Mapping[str, Any]) -> Any:
    """``returned`` as it was before it was sent."""
    if _WHOLE in beside:
        return Reward(returned, **beside[_WHOLE])
    if _CALLS in beside:
        return {
            call: Reward(value, **beside[_CALLS][call]) if call in beside[_CALLS] else value
            for call, value in returned.items()
        }
    return returned
