"""What an agent is: code that does a task, ``async run(data, **extra_kwargs)``."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

Data = dict[str, Any]
"""One task: a row of input data, the agent's own deep copy."""

RunResult = float | dict[str, float] | None
"""The episode's reward, or rewards by response id, or ``None``: rejected, not trained."""


@runtime_checkable
class AgentWorkflow(Protocol):
    """An optional base class, for typing only: any object of this shape is an agent.

    ``extra_kwargs`` are ``base_url``, ``api_key``, ``http_client``, ``model`` and what the config's
    ``agent.kwargs`` holds; of these only what the signature takes is passed.
    """

    async def run(self, data: Data, **extra_kwargs: Any) -> Any:
        """Do the task. With ``reward:`` in the config the result is the answer to be scored."""
        ...
