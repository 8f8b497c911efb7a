"""What runs an agent's code: coroutines in this process, or something further away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentrl.agents.contract import Data
from agentrl.rollout.deadline import Stage


class AgentRunner(Protocol):
    """Runs one episode's agent code under a deadline."""

    async def run(
        self,
        data: Data,
        connection: Mapping[str, Any],
        *,
        deadline_s: float,
        stage: Callable[[], Stage],
        alone: bool = False,
    ) -> Any:
        """Return what the agent returned.

        Whatever the agent raises passes through. Raises ``EpisodeTimeout`` after ``deadline_s`` seconds,
        which tells by ``stage()`` where it was and who took the time. Ends the agent's code before it returns.
        ``alone`` keeps the agent apart from others, so that it can neither harm them nor be harmed by them;
        without it ``WorkerError`` may be raised for an episode whose process another one has brought down.
        """
        ...
