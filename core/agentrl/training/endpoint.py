"""A model behind an endpoint, reached through a chat backend: it has no folder, no tokenizer and no weights here."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from agentrl.config.models import Config
from agentrl.gateway import Gateway, RelayCompleter
from agentrl.gateway.gateway import registered_dialects
from agentrl.inference.contract import ChatBackend, ChatContext
from agentrl.rollout.contract import Episode
from agentrl.rollout.dispatcher import Dispatcher
from agentrl.training.parts import EpisodeParts
from agentrl.training.serving import rolling_out, stop, warned, within

__all__ = ["Endpoint", "named_by_endpoint", "serve_endpoint"]

_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is running while an endpoint is evaluated."""

    dispatcher: Dispatcher
    greedy: bool
    """Whether the model takes temperature 0."""


def named_by_endpoint(config: Config) -> Config:
    """``config``, of a chat backend, with the backend's key ``model``, where it is set, as the name of the model."""
    part = config.inference.backend
    name = part.options.get("model")
    if not isinstance(name, str):
        return config
    others = {key: value for key, value in part.options.items() if key != "model"}
    inference = config.inference.model_copy(update={"backend": type(part)(name=part.name, **others)})
    model = config.model.model_copy(update={"name": name})
    return config.model_copy(update={"model": model, "inference": inference})


@contextlib.asynccontextmanager
async def serve_endpoint(
    parts: EpisodeParts,
    *,
    finished: Callable[[Episode], Awaitable[None]],
    warn: Callable[[str], None],
    logs: Path | None = None,
) -> AsyncIterator[Endpoint]:
    """Start the chat backend, the gateway and the agent; arguments and errors as in ``serve``."""
    backend = _build(parts, warn)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stop, backend, warned(warn), warn)
        # The backend's own deadlines come first: it can say which endpoint was asked what.
        async with within(parts.config.inference.timeout + _GRACE_S, "the endpoint to answer"):
            capabilities = await backend.start()
        gateway = Gateway(RelayCompleter(backend), registered_dialects(parts.plugins, warn))
        rollout = rolling_out(parts, gateway, finished=finished, warn=warn, logs=logs)
        yield Endpoint(await stack.enter_async_context(rollout), capabilities.greedy)


def _build(parts: EpisodeParts, warn: Callable[[str], None]) -> ChatBackend:
    config = parts.config
    context = ChatContext(
        model=config.model.name,
        timeout=config.inference.timeout,
        max_concurrency=config.rollout.concurrency,
        warn=warn,
        options=config.inference.backend.options,
    )
    backend: ChatBackend = parts.plugins.build("backends", config.inference.backend, context=context)
    return backend
