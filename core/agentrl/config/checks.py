"""What a valid configuration still cannot mean: settings that prevent learning, and settings without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agentrl.config.models import Config
from agentrl.errors import ConfigError

__all__ = ["Ineffective", "check_trainable", "ineffective_keys", "unused_by_evaluation"]

_OF_RENDERING = ("seed", "model.renderer", "model.chat_template", "model.control_tokens", "model.date")
_OF_TRAINING = (
    "training.learning_rate",
    "training.warmup_steps",
    "training.schedule",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.tokens_per_batch",
    "training.checkpoint_every",
    "tasks.train",
    "rollout.group_size",
    "rollout.tasks_per_step",
    "rollout.temperature",
    "rollout.max_staleness",
    "evaluation.every",
)


@dataclass(frozen=True, slots=True)
class Ineffective:
    """A key that was set and would change nothing."""

    key: str
    place: str
    """Where it was set."""
    reason: str

    def __str__(self) -> str:
        return f"{self.key} ({self.place}) has no effect: {self.reason}"


def check_trainable(config: Config) -> None:
    """Raise ``ConfigError`` where training could not learn; evaluation may run with the same configuration."""
    override = config.rollout.override.get("temperature")
    temperature = config.rollout.temperature if override is None else override
    if temperature == 0:
        key = "rollout.temperature" if override is None else "rollout.override.temperature"
        raise ConfigError(
            f"{key}=0 samples all episodes of a group alike, so nothing can be learned from comparing them",
            fix=f"set {key} above 0",
        )


def ineffective_keys(config: Config, provenance: Mapping[str, str]) -> list[Ineffective]:
    """Keys that somebody has set and that change nothing in this combination.

    ``provenance`` is that of ``resolve_config``: keys that come from the defaults are nobody's.
    """
    return [
        Ineffective(key, place, reason)
        for section, reason in _dead(config)
        for key, place in provenance.items()
        if place != "default" and (key == section or key.startswith(f"{section}."))
    ]


def unused_by_evaluation(provenance: Mapping[str, str], *, endpoint: bool = False) -> list[Ineffective]:
    """Keys of the command line or the environment that only training reads; a run's own file may hold them all.

    With ``endpoint``, also those that mean nothing for a model that somebody else serves.
    """
    sections = (*_OF_TRAINING, "training", "algorithm", "trackers", "scheduler")
    reasons = dict.fromkeys(sections, "evaluation does not train")
    if endpoint:
        reasons |= dict.fromkeys(_OF_RENDERING, "an endpoint renders and samples as it does")
    return [
        Ineffective(key, place, reason)
        for key, place in provenance.items()
        if place == "command line" or place.startswith("environment ")
        for section, reason in reasons.items()
        if key == section or key.startswith(f"{section}.")
    ]


def _dead(config: Config) -> Iterator[tuple[str, str]]:
    """Keys, or the sections that hold them, that nothing reads; each key once."""
    no_training = config.training.steps == 0
    if no_training:
        yield from ((key, "training.steps is 0") for key in _OF_TRAINING)
    elif config.training.learning_rate == 0:
        for key in ("warmup_steps", "schedule", "weight_decay"):
            yield f"training.{key}", "training.learning_rate is 0"
    if config.tasks.eval is None:
        for key in type(config.evaluation).model_fields:
            if not (no_training and key == "every"):
                yield f"evaluation.{key}", "tasks.eval is null"
    if not config.runs_in_workers:
        for key in ("rollout.max_workers", "rollout.episodes_per_worker", "agent.env"):
            yield key, "agents run inline"
    yield from _overridden(config, no_training)


def _overridden(config: Config, no_training: bool) -> Iterator[tuple[str, str]]:
    override = config.rollout.override
    if override.get("temperature") is not None:
        if not no_training:
            yield "rollout.temperature", "rollout.override.temperature replaces it"
        if config.tasks.eval is not None:
            yield "evaluation.temperature", "rollout.override.temperature replaces it"
    limit = next((field for field in ("max_tokens", "max_completion_tokens") if override.get(field) is not None), None)
    if limit is not None:
        yield "rollout.max_tokens", f"rollout.override.{limit} replaces it"
