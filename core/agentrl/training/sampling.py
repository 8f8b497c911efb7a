"""How the config wants completions sampled, held against what the backend that has started can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentrl.config.models import Config
from agentrl.errors import ConfigError, GatewayError, shown
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.dialects.chat import SAMPLING_FIELDS, ChatCompletions
from agentrl.gateway.dialects.chat_api import ALIASES
from agentrl.gateway.dialects.overrides import apply_override
from agentrl.gateway.dialects.relayed_chat import RelayedChat
from agentrl.gateway.request import ModelRequest
from agentrl.gateway.sampling import resolve_sampling
from agentrl.inference.contract import Capabilities

__all__ = ["ANY_ENGINE", "check_override", "check_sampling"]

ANY_ENGINE = Capabilities(1, 1, sampling=SAMPLING_FIELDS | {"top_logprobs"})
"""What an engine could do at best: what is refused under it is refused by every one."""


def check_override(config: Config, *, chat: bool = False) -> None:
    """Raise ``ConfigError``, naming the key, where no call could be answered as asked under ``rollout.override``.

    ``chat`` says that the backend is one for messages, to whose endpoint a field may mean something.
    """
    (RelayedChat if chat else ChatCompletions).check_override(config.rollout.override)


def check_sampling(config: Config, capabilities: Capabilities, *, trains: bool) -> None:
    """Raise ``ConfigError`` where the gateway would refuse every call of a session for what the config sets.

    ``trains`` says whether there are training sessions beside those of evaluation.
    """
    request = _overridden(config)
    for key, settings in _sessions(config, trains):
        try:
            resolve_sampling(request, settings, capabilities, room=1, seed=0, stop_ids=frozenset())
        except GatewayError as error:
            raise _refused(config, key, error) from error


def _sessions(config: Config, trains: bool) -> Iterator[tuple[str, SessionSettings]]:
    """Each kind of session that there will be, and the key of its temperature."""
    if trains:
        yield "rollout.temperature", SessionSettings(training=True, temperature=config.rollout.temperature)
    if config.tasks.eval is not None:
        yield "evaluation.temperature", SessionSettings(training=False, temperature=config.evaluation.temperature)


def _overridden(config: Config) -> ModelRequest:
    """A request that asks for nothing itself, under ``rollout.override``."""
    fields, _ = apply_override({}, config.rollout.override)
    count = fields.get("top_logprobs", 0)
    return ModelRequest(fields, [], fields=fields, top_logprobs=count if isinstance(count, int) else 0)


def _refused(config: Config, key: str, error: GatewayError) -> ConfigError:
    section: Any = getattr(config, key.partition(".")[0])
    value = section.temperature
    for name, replacement in config.rollout.override.items():
        if replacement is not None and ALIASES.get(name, name) == error.param:
            key, value = f"rollout.override.{name}", replacement
    backend = config.inference.backend.name
    return ConfigError(
        f"with {key}={shown(value, 80)} and inference.backend={backend!r} every call would be refused: {error.message}",
        fix=f"change {key}, or drop it",
    )
