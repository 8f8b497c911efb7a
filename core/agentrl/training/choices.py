"""What a run chooses where its config leaves it open: the learning rate, and tasks that suit a bundled model.

A bundled model's registered function may have an attribute ``suggests``: values by dotted key, such as
``{"tasks.train": {"name": "arithmetic", "digits": 1}}``. They take the place of these keys' defaults in a run that
would otherwise train on the default tasks, which are made for `tiny`. What is written anywhere stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agentrl.config.models import Config, TasksSection
from agentrl.config.section import PartModel
from agentrl.errors import PluginError, one_line
from agentrl.inference.model_folder import count_parameters
from agentrl.learner.optimiser import with_rate
from agentrl.plugins import Plugins

__all__ = ["Choice", "choices", "told", "with_learning_rate", "with_suggestions"]

_UNITS = ((" billion", 10**9), (" million", 10**6), (" thousand", 10**3))


class Choice(NamedTuple):
    """A key that a run has chosen the value of."""

    key: str
    value: Any
    why: str


def choices(before: Config, after: Config, plugins: Plugins, folder: Path) -> list[Choice]:
    """What has been chosen between the config of the user and that of the run, whose model is in ``folder``."""
    chosen = [
        Choice(key, value, f"suggested by {before.model.name}")
        for key, value in _open(before, plugins).items()
        if _at(after, key) != _at(before, key)
    ]
    if before.algorithm != after.algorithm:
        chosen.append(Choice("algorithm", after.algorithm.name, "which imitates"))
    if before.training.steps != after.training.steps:
        of = f"those of {after.replay.run}" if after.is_replay else f"sft.epochs={before.sft.epochs or 1}"
        chosen.append(Choice("training.steps", after.training.steps, of))
    if before.training.learning_rate != after.training.learning_rate:
        chosen.append(Choice("training.learning_rate", after.training.rate, f"auto: {_size(after, folder)}"))
    return chosen


def _size(config: Config, folder: Path) -> str:
    parameters = count_parameters(folder)
    unit, divisor = next((each for each in _UNITS if parameters >= each[1]), ("", 1))
    whose = "an adapter of a model of" if config.training.lora is not None else "a model of"
    return f"for {whose} {parameters / divisor:.3g}{unit} parameters"


def with_learning_rate(config: Config, folder: Path) -> Config:
    """``config`` with a number for a learning rate that is `auto`, by the model in ``folder``.

    The run's folder keeps the number, so that a run that is resumed goes on with it.
    """
    if config.training.learning_rate != "auto":
        return config
    return config.setting("training", with_rate(config.training, count_parameters(folder)))


def with_suggestions(config: Config, plugins: Plugins) -> Config:
    """``config`` with what its model suggests for the keys that nobody has set.

    Raises ``PluginError`` for a suggestion that is none.
    """
    for key, value in _open(config, plugins).items():
        section, name = key.split(".")
        values = getattr(config, section)
        try:
            changed = type(values).model_validate({**values.model_dump(), name: value})
        except ValueError as error:
            raise PluginError(f"model {config.model.name!r} suggests {key}={value!r}: {one_line(error)}") from error
        config = config.setting(section, changed)
    return config


def _open(config: Config, plugins: Plugins) -> Mapping[str, Any]:
    """The suggestions of the model for keys that nobody has set; none where the default tasks are not trained on."""
    if config.is_online or config.tasks.train != TasksSection().train or _is_written("tasks.train", config):
        return {}
    entry = next((each for each in plugins.entries("models") if each.is_called(config.model.name)), None)
    suggested = {} if entry is None else getattr(plugins.get("models", config.model.name), "suggests", {})
    return {key: value for key, value in suggested.items() if _is_default(key, config)}


def _at(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _is_default(key: str, config: Config) -> bool:
    return bool(_at(config, key) == _at(Config(), key)) and not _is_written(key, config)


def _is_written(key: str, config: Config) -> bool:
    return any(written == key or written.startswith(f"{key}.") for written in config.written_at)


def told(value: Any) -> str:
    """A chosen value as it is written in a config."""
    if isinstance(value, PartModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {told(held)}' for key, held in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
