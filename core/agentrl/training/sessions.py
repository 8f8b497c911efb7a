"""How the calls of a training episode are sampled."""

from __future__ import annotations

from agentrl.config.models import Config
from agentrl.gateway.contract import SessionSettings
from agentrl.rollout.contract import EpisodeKey

__all__ = ["training_session"]


def training_session(config: Config, key: EpisodeKey, version: int) -> SessionSettings:
    """The session of the episode ``key`` under weights of ``version``."""
    rollout = config.rollout
    return SessionSettings(
        training=True,
        model=config.model.name,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        override=rollout.override,
        versions=(version, version),
        seed_key=(config.seed, key.phase, version, key.task, key.sample),
    )
