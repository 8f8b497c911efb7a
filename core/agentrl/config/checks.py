"""What a valid configuration still cannot mean: settings that prevent learning, and settings without effect."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from agentrl.config.keys import field_at, is_plain_union, key_names, known_keys, model_at
from agentrl.config.models import Config
from agentrl.environ import PREFIX
from agentrl.errors import ConfigError, near_matches, one_line, shortened

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "Ineffective",
    "check_trainable",
    "config_error",
    "ineffective_keys",
    "near_key",
    "unknown_key",
    "unused_by_evaluation",
]

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


_LONGEST_VALUE = 80
Origin = Callable[[str], str | None]
"""Where the value of a key came from."""


def config_error(
    error: ValidationError, model: type[BaseModel], *, at: str = "", origin: Origin = lambda _key: None
) -> ConfigError:
    """The first thing that ``error`` reports, with the key, the value, what was expected and where it came from.

    ``model`` is what was validated, and ``at`` the key that it stands at in the whole configuration.
    """
    errors = error.errors(include_url=False)
    first, path = errors[0], _path(errors[0], model)
    more = len({tuple(_path(each, model)) for each in errors}) - 1
    key = ".".join((at, *path) if at else path)
    source = origin(key)
    place = f"{source}: " if source else ""
    rest = f" (and {more} more)" if more else ""
    if first["type"] == "extra_forbidden":
        return unknown_key(model, path, at=at, place=place)
    return ConfigError(f"{place}{_complaint(first, key, model, path)}{rest}", fix=_fix(first, key, model, path))


def unknown_key(model: type[BaseModel], path: Sequence[str], *, at: str = "", place: str = "") -> ConfigError:
    """The error for a key that ``model`` does not have at ``path``, with the keys that are near."""
    key = ".".join((at, *path) if at else path)
    variable = place.startswith("environment ")
    return ConfigError(f"{place}there is no key {key!r}", fix=_near_keys(model, path, variable=variable))


def near_key(model: type[BaseModel], name: str) -> str | None:
    """The whole key that ``name`` may be meant for: its last word, or all of them with underscores between."""
    spelled = {key.replace(".", "_"): key for key in known_keys(model)}
    spelled |= {key.rpartition(".")[2]: key for key in known_keys(model)}
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.8)
    return spelled[near[0]] if near else None


def _joined(model: type[BaseModel], name: str) -> str | None:
    """The key of several words that ``name`` is with underscores between them, or very nearly."""
    spelled = {key.replace(".", "_"): key for key in known_keys(model) if "." in key}
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.9)
    return spelled[near[0]] if near else None


def _near_keys(model: type[BaseModel], path: Sequence[str], *, variable: bool) -> str:
    """Keys beside the unknown one with a similar name, else such keys anywhere, else all beside it."""
    parent = model_at(model, path[:-1])
    beside = near_matches(path[-1], key_names(parent) if parent else ())
    near = _joined(model, path[-1]) if len(path) == 1 else None
    if near is None and beside.startswith("did you mean"):
        return beside
    near = near or near_key(model, path[-1])
    if near is None:
        return beside
    return f"did you mean {PREFIX}{near.upper().replace('.', '__')}?" if variable else f"did you mean {near!r}?"


def _path(error: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Where the error is, without the member of a union that pydantic tried there."""
    path = [str(name) for name in error["loc"]]
    while len(path) > 1 and field_at(model, path) is None and is_plain_union(field_at(model, path[:-1])):
        path.pop()
    return path


def _complaint(error: ErrorDetails, key: str, model: type[BaseModel], path: Sequence[str]) -> str:
    message = one_line(error["msg"])
    if error["type"] == "missing":
        return f"{key} is missing{_meaning(model, path)}"
    if error["type"] == "none_required":
        return f"{key} should be null, not {_shown(error['input'])}"
    if error["type"] == "value_error":
        reason = message.removeprefix("Value error, ")
        return f"{key}: {reason}" if key else reason
    if error["type"] == "model_type":
        message = f"Input should be {_form(model_at(model, path))}"
    if message.startswith("Input should be"):
        expected = message.removeprefix("Input").partition(", unable to")[0]
        return f"{key}{expected}, not {_shown(error['input'])}"
    return f"{key}={_shown(error['input'])}: {message[0].lower()}{message[1:]}"


def _form(section: type[BaseModel] | None) -> str:
    """How a section is written: parts have a short form."""
    name = section.model_fields.get("name") if section else None
    return "a name, or {name: …} with its keys" if name and name.is_required() else "keys with their values"


def _shown(value: object) -> str:
    """A value as YAML writes it, cut where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return shortened(text, _LONGEST_VALUE)


def _meaning(model: type[BaseModel], path: Sequence[str]) -> str:
    """What a key is, as the first sentence of its help has it."""
    help_ = one_line(getattr(field_at(model, path), "description", None) or "")
    first = help_.partition(". ")[0].rstrip(".")
    return f": {first[0].lower()}{first[1:]}" if first else ""


def _fix(error: ErrorDetails, key: str, model: type[BaseModel], path: Sequence[str]) -> str | None:
    if error["type"] == "missing":
        return f"set {key}, or leave out what is set beside it" if len(path) > 1 else f"set {key}"
    if error["type"] == "none_required":
        return getattr(field_at(model, path), "description", None)
    if error["type"] == "list_type" and isinstance(error["input"], str):
        return f"write it as a list: [{error['input']}]"
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        return "put it in quotes to make it text"
    return _default(model, path)


def _default(model: type[BaseModel], path: Sequence[str]) -> str | None:
    field = field_at(model, path)
    if field is None or field.is_required():
        return None
    default = field.get_default(call_default_factory=False)
    return None if isinstance(default, BaseModel) else f"the default is {json.dumps(default, default=str)}"
