"""Sources: where the models are that an algorithm needs beside the learner's, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.algorithms.contract import Algorithm
from agentrl.algorithms.teacher import TeacherSettings
from agentrl.config.models import Config, ModelSection
from agentrl.errors import ConfigError, about, near_matches
from agentrl.inference.model_folder import find_model, vocabulary_of
from agentrl.plugins import Plugins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Sources"]

_COLUMNS = ("reference", "teacher", "value")
_AT = "algorithm.advantage"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the models are that an algorithm needs beside the learner's."""

    reference: Path | None = None
    """The folder of the model that a run began with; ``None`` where the algorithm has no reference, or an adapter is
    trained, under which the reference is there already."""
    teacher: Path | TeacherSettings | None = None
    """The folder of the teacher, or the endpoint that serves it; ``None`` where the algorithm has none."""
    tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None
    """Loads the tokenizer of the model under training."""

    @property
    def frozen(self) -> dict[str, Path]:
        """The folders of the models that are loaded beside the learner's, by what they are."""
        found = {"reference": self.reference, "teacher": self.teacher}
        return {name: each for name, each in found.items() if isinstance(each, Path)}

    @classmethod
    def of(
        cls, algorithm: Algorithm, config: Config, plugins: Plugins, folder: Path, *, is_original: bool = True
    ) -> Sources:
        """Find them, and load no weights.

        ``folder`` is that of the weights under training, which are those of the config's model if ``is_original``: a
        resumed run has others. Raises ``ConfigError`` for a column that no model gives, a model that is not there, and
        a teacher whose vocabulary is another.
        """
        for column in algorithm.columns:
            if column not in _COLUMNS:
                raise ConfigError(
                    f"algorithm {algorithm.name!r} needs the column {column!r} of its batches, which nothing gives",
                    fix=near_matches(column, _COLUMNS),
                )
        reference = None
        if "reference" in algorithm.columns and config.training.lora is None:
            reference = folder if is_original else find_model(plugins, config.model)
        teacher = _teacher(algorithm, config, plugins, folder) if "teacher" in algorithm.columns else None
        return cls(reference, teacher, lambda: _tokenizer(folder))


def _teacher(algorithm: Algorithm, config: Config, plugins: Plugins, folder: Path) -> Path | TeacherSettings:
    settings = getattr(algorithm.advantage, "teacher", None)
    if not isinstance(settings, TeacherSettings):
        raise ConfigError(
            f"algorithm {algorithm.name!r} needs the column 'teacher', and its advantage does not say who that is",
            fix="derive its Settings from those of advantage.teacher, and keep them as its attribute `teacher`",
        )
    if settings.url is None:
        return _folder(settings, plugins, folder)
    if config.rollout.temperature != 1.0:
        raise ConfigError(
            f"a teacher at an endpoint tells log-probabilities at temperature 1 alone, and rollout.temperature is "
            f"{config.rollout.temperature:g}",
            fix="set rollout.temperature=1, or name the teacher's folder without a url",
            key="rollout.temperature",
        )
    if config.rollout.constrained == "train":
        raise ConfigError(
            "a teacher at an endpoint tells log-probabilities over its whole vocabulary alone, and "
            "rollout.constrained=train trains tokens that a grammar let choose from fewer",
            fix="set rollout.constrained=exclude, or name the teacher's folder without a url",
            key="rollout.constrained",
        )
    from agentrl.training.teachers import EndpointTeacher

    EndpointTeacher(settings)  # Raises for what can be told of it before it is asked.
    return settings


_OF_ENDPOINTS = ("api_key_env", "concurrency", "timeout", "max_retries")


def _folder(settings: TeacherSettings, plugins: Plugins, folder: Path) -> Path:
    for key in _OF_ENDPOINTS:
        if key in settings.model_fields_set:
            raise ConfigError(
                f"{_AT}.{key} has no effect: the teacher {settings.model!r} is loaded here, and asked at no endpoint",
                fix=f"leave it out, or set {_AT}.url",
                key=f"{_AT}.{key}",
            )
    from agentrl.training.teachers import check_same_vocabulary

    with about(f"{_AT}.model"):
        found = find_model(plugins, ModelSection(name=settings.model))
    sizes = vocabulary_of(folder), vocabulary_of(found)
    check_same_vocabulary(_tokenizer(folder), _tokenizer(found), sizes, settings.model)
    return found


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {folder} has no tokenizer that loads, by which its vocabulary could be compared",
            fix="save the model's tokenizer beside its weights with `save_pretrained`",
        ) from error
    return tokenizer
