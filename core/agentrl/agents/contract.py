"""What an agent is: code that does a task, ``async run(data, **extra_kwargs)``."""

from __future__ import annotations

from collections.abc import Mapping
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


class LoadedAgent(Protocol):
    """An agent that this process has imported, bound to the config's ``agent.kwargs``."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def is_async(self) -> bool:
        """Whether ``call`` returns a coroutine; an agent that is not async blocks its thread until it is done."""
        ...

    @property
    def returns_answer(self) -> bool:
        """Whether what it returns is never a reward, only what a reward function can score."""
        ...

    def takes(self, name: str) -> bool:
        """Whether it is passed ``name``: ``base_url``, ``api_key``, ``http_client`` or ``model``."""
        ...

    def call(self, data: Data, connection: Mapping[str, Any]) -> Any:
        """Call it for one episode: returns the coroutine of an async agent, and the result of any other.

        It is passed those of ``connection`` (``base_url``, ``api_key``, ``http_client``, ``model``) that it takes.
        Whatever the agent raises passes through; exceptions that the config declares outcomes become ``PolicyError``.
        """
        ...
