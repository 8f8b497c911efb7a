"""Keys that were set and would change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from agentrl.config.models import Config

__all__ = [
    "Ineffective",
    "ineffective_keys",
    "unused_by_evaluation",
    "unused_by_imitation",
    "unused_by_replay",
    "unused_by_serving",
]

_OF_RENDERING = ("seed", "model.renderer", "model.chat_template", "model.control_tokens", "model.date")
_OF_ENGINES = ("inference.concurrency", "rollout.max_waiting")
_OF_ADDRESSES = tuple(f"gateway.{key}" for key in ("host", "port", "url"))
_OF_TRAINING = (
    "training.learning_rate",
    "training.warmup_steps",
    "training.schedule",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.optimiser",
    "training.gradient_checkpointing",
    "training.minibatches",
    "training.lora",
    "training.tokens_per_batch",
    "training.processes",
    "training.checkpoint_every",
    "inference.backend.share_weights",
    "tasks.train",
    "rollout.group_size",
    "rollout.tasks_per_step",
    "rollout.temperature",
    "rollout.constrained",
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


def ineffective_keys(config: Config, provenance: Mapping[str, str]) -> list[Ineffective]:
    """Keys that were set and that change nothing in this combination of settings.

    ``provenance`` is that of ``resolve_config``; defaults are not reported.
    """
    found = list(_among(_set(provenance), chain(_of_agents(config), _dead(config))))
    return list({each.key: each for each in reversed(found)}.values())[::-1]


def unused_by_evaluation(provenance: Mapping[str, str], *, endpoint: bool = False) -> list[Ineffective]:
    """Keys that only training reads, of the command line and the environment: the file of a run may hold all keys.

    With ``endpoint``, also keys that mean nothing for a model that an endpoint serves.
    """
    sections = (*_OF_TRAINING, "training", "algorithm", "trackers", "scheduler", "serve")
    reasons = dict.fromkeys(sections, "evaluation does not train")
    if endpoint:
        reasons |= dict.fromkeys(_OF_RENDERING, "an endpoint renders and samples as it does")
        reasons |= dict.fromkeys(_OF_ENGINES, "an endpoint decides how many calls it answers at once")
    return list(_among(_given(provenance), reasons.items()))


def unused_by_serving(provenance: Mapping[str, str], *, endpoint: bool = False) -> list[Ineffective]:
    """As ``unused_by_evaluation``, for a service that runs no agent and trains nothing."""
    sections = ("agent", "tasks", "reward", "evaluation", "training", "algorithm", "trackers", "scheduler")
    rollout = ("group_size", "tasks_per_step", "mode", "max_workers", "episodes_per_worker", "episode_timeout")
    others = (*rollout, "max_attempts", "failure_budget", "on_overflow", "max_waiting")
    reasons = dict.fromkeys((*sections, *(f"rollout.{key}" for key in others)), "the agents are run elsewhere")
    reasons["inference.backend.share_weights"] = "nothing is trained"
    reasons |= dict.fromkeys(_OF_ADDRESSES, "sessions are served at serve.host, serve.port and serve.url")
    if endpoint:
        reasons |= dict.fromkeys(_OF_RENDERING, "an endpoint renders and samples as it does")
        reasons["inference.concurrency"] = "an endpoint decides how many calls it answers at once"
    return list(_among(_given(provenance), reasons.items()))


def unused_by_imitation(config: Config, provenance: Mapping[str, str]) -> list[Ineffective]:
    """As ``unused_by_evaluation``, for `agentrl sft`, which runs no agent and samples nothing."""
    sections = ("agent", "tasks", "reward", "rollout", "gateway", "serve", "inference", "health")
    reasons = dict.fromkeys(sections, "agentrl sft runs no agent and samples nothing")
    reasons |= dict.fromkeys(
        (f"evaluation.{key}" for key in ("samples_per_task", "overlap", "temperature")), "the held-out loss is measured"
    )
    if config.sft.tokens_per_step is not None:
        reasons["sft.conversations_per_step"] = "sft.tokens_per_step replaces it"
    if config.sft.held_out_data is not None:
        reasons["sft.held_out"] = "sft.held_out_data replaces it"
    elif config.sft.held_out == 0:
        reasons |= dict.fromkeys(("evaluation.every", "evaluation.tasks"), "sft.held_out=0 leaves nothing to measure")
    return list(_among(_set(provenance), reasons.items()))


def unused_by_replay(provenance: Mapping[str, str], *, trains: bool, scores: bool = True) -> list[Ineffective]:
    """As ``unused_by_evaluation``, for `agentrl replay`, with which the file of a run holds every key.

    ``trains`` says whether it trains from the episodes, and ``scores`` whether it scores them again.
    """
    sections = ("agent", "tasks", "gateway", "serve", "inference", "evaluation", "sft")
    rollout = ("group_size", "tasks_per_step", "dynamic_sampling", "mode", "max_waiting", "temperature", "max_tokens")
    reasons = dict.fromkeys(
        (*sections, *(f"rollout.{key}" for key in (*rollout, "override"))),
        "agentrl replay runs no agent and samples nothing",
    )
    reasons["training.restarts"] = "a run of agentrl replay is started again, which repeats what it did"
    if not trains:
        others = ("algorithm", "model", "training", "health", "trackers", "scheduler", "seed", "run.name")
        reasons |= dict.fromkeys(others, "without --algorithm nothing is trained")
    if not scores:
        reasons |= dict.fromkeys(("reward", "replay.answer"), "without --reward the episodes keep their rewards")
    return list(_among(_given(provenance), reasons.items()))


def _of_agents(config: Config) -> Iterator[tuple[str, str]]:
    """What only a run with an agent reads, or only one without."""
    yield "sft", "only agentrl sft reads it"
    yield "replay", "only agentrl replay reads it"
    if not config.is_online:
        yield "serve", "only agent=online serves sessions"
        return
    agent = ("python", "env", "outcomes", "kwargs")
    rollout = ("mode", "max_workers", "episodes_per_worker", "episode_timeout", "max_attempts", "failure_budget")
    yield from ((f"agent.{key}", "agent=online runs no agent's code") for key in agent)
    yield from ((f"rollout.{key}", "agent=online runs no agent's code") for key in (*rollout, "on_overflow"))
    yield "rollout.max_waiting", "agent=online limits the calls that wait by serve.max_waiting"
    yield "rollout.dynamic_sampling", "agent=online cannot ask people for more sessions"
    yield "health.reward_gap", "agent=online evaluates nothing"
    yield from ((key, "agent=online serves at serve.host, serve.port and serve.url") for key in _OF_ADDRESSES)
    for section in ("tasks", "reward", "evaluation"):
        yield section, "with agent=online people bring tasks and rewards (agentrl eval measures a checkpoint)"


def _dead(config: Config) -> Iterator[tuple[str, str]]:
    """Keys and sections that nothing reads in this combination, each with the reason, and each once."""
    no_training = config.training.steps == 0
    if no_training:
        yield from ((key, "training.steps is 0") for key in _OF_TRAINING)
    elif config.training.learning_rate == 0:
        for key in ("warmup_steps", "schedule", "weight_decay"):
            yield f"training.{key}", "training.learning_rate is 0"
    if config.training.processes == 1 and config.scheduler.type == "local":
        yield "training.restarts", "training.processes is 1, so that there is no process to lose"
    elif config.is_online:
        yield "training.restarts", "nobody can repeat what people did in the sessions of agent=online"
    if config.tasks.eval is None:
        for key in type(config.evaluation).model_fields:
            if not (no_training and key == "every"):
                yield f"evaluation.{key}", "tasks.eval is null"
        yield "health.reward_gap", "tasks.eval is null"
    if not config.prices.known:
        yield "prices.currency", "no price is set"
    if config.prices.gpu_hour is None:
        yield "prices.gpus", "prices.gpu_hour is null"
    if not config.health.rolling_back:
        yield "health.most_rollbacks", "no rule of health is set to rollback"
    if not (config.rollout.max_staleness or config.is_online or no_training):
        yield "rollout.on_stale", "rollout.max_staleness is 0"
        yield "inference.in_flight", "rollout.max_staleness is 0, so that nothing is in flight when weights change"
        for rule in ("staleness", "stale_share", "stage_wait"):
            yield f"health.{rule}", "rollout.max_staleness is 0, so that nothing is stale and the stages take turns"
    chosen_elsewhere = config.rollout.mode.name == "auto" and config.scheduler.type != "local"
    if not (config.runs_in_workers or chosen_elsewhere):  # A scheduler of a plugin may choose workers.
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


def _set(provenance: Mapping[str, str]) -> dict[str, str]:
    """The keys that somebody has set, and where."""
    return {key: place for key, place in provenance.items() if place != "default"}


def _given(provenance: Mapping[str, str]) -> dict[str, str]:
    """Those of the command line and the environment."""
    said = ("command line", "environment ")
    return {key: place for key, place in provenance.items() if place.startswith(said)}


def _among(given: Mapping[str, str], reasons: Iterable[tuple[str, str]]) -> Iterator[Ineffective]:
    """The keys of ``given`` that lie at or below one for which there is a reason."""
    for section, reason in reasons:
        for key, place in given.items():
            if key == section or key.startswith(f"{section}."):
                yield Ineffective(key, place, reason)
