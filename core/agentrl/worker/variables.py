"""The environment variables from which SDKs take their endpoint, each episode's own.

Agents that ignore what they are passed read ``OPENAI_BASE_URL`` and its like, when a client is made or long
before. Two layers make every such agent reach the right session:

- The process's own variables name the worker's *process endpoint*, from before the agent is imported until the
  end. Its calls go to the session of the one episode that runs, so a client made at import time is captured, and
  so is a child process, a thread of the agent's own or a library that reads C's environment. With several
  episodes at once such calls belong to none, and the gateway refuses them.
- Code that runs inside an episode sees that episode's endpoint in ``os.environ``: a context variable
  (``contextvars``) follows the episode into its tasks, ``asyncio.to_thread`` and callbacks, so that episodes
  beside each other do not see each other's. What the agent itself assigns to one of these names it sees too, in
  that episode alone.

``os.environ`` stays the same object, as other modules hold on to it; only its class becomes one that looks at the
context first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

__all__ = ["EndpointVariables", "endpoint_variables", "enter_episode", "set_process_variables"]

_EPISODE: ContextVar[dict[str, str | None] | None] = ContextVar("agentrl_endpoint_variables", default=None)
"""The values of the episode that the current context belongs to; ``None`` for one that the agent has deleted."""


def endpoint_variables(base_url: str, api_key: str) -> dict[str, str]:
    """The variables of the SDKs for an endpoint. Anthropic's SDK appends ``/v1/messages`` to its base URL itself."""
    return {
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": api_key,
        "ANTHROPIC_BASE_URL": base_url.removesuffix("/").removesuffix("/v1"),
        "ANTHROPIC_API_KEY": api_key,
        "ANTHROPIC_AUTH_TOKEN": api_key,
    }


def set_process_variables(variables: Mapping[str, str]) -> None:
    """Set the process's own variables, and let episodes have their own from now on."""
    os.environ.update(variables)
    os.environ.__class__ = EndpointVariables


def enter_episode(variables: Mapping[str, str]) -> None:
    """Give the current context, and what starts in it, its own values."""
    _EPISODE.set({**variables})


class EndpointVariables(os._Environ[str]):
    """The mapping of a process's environment, with the episode's own values where there is an episode."""

    def __getitem__(self, key: str) -> str:
        own = _EPISODE.get()
        if own is None or key not in own:
            return super().__getitem__(key)
        if (value := own[key]) is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: str) -> None:
        own = _EPISODE.get()
        if own is None or key not in own:
            super().__setitem__(key, value)
        else:
            own[key] = self.decodevalue(self.encodevalue(value))  # Refuses what is no text, as ever.

    def __delitem__(self, key: str) -> None:
        own = _EPISODE.get()
        if own is None or key not in own:
            super().__delitem__(key)
        elif own[key] is None:
            raise KeyError(key)
        else:
            own[key] = None

    def __iter__(self) -> Iterator[str]:
        own = _EPISODE.get() or {}
        yield from (key for key in super().__iter__() if key not in own)
        yield from (key for key, value in list(own.items()) if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"environ({dict(self)!r})"
