"""Tasks that the `reasoning-gym` library generates. The reward `reasoning-gym` scores answers to them."""

from __future__ import annotations

from typing import Any, cast

from pydantic import ConfigDict, Field

from agentrl.config.section import Section
from agentrl.errors import ConfigError, near_matches
from agentrl.tasks.contract import Task

__all__ = ["ReasoningGymTasks"]


class ReasoningGymTasks:
    """The tasks of one generator of reasoning-gym.

    A task has `question`, `answer` (null where there are several right ones, which only the scorer can tell) and
    `metadata`, which the scorer needs.
    """

    class Settings(Section):
        """Keys of `reasoning-gym`; every other key goes to the generator."""

        model_config = ConfigDict(extra="allow")

        dataset: str
        """Name of the data set, such as `leg_counting`."""
        size: int = Field(512, ge=1)
        """The number of tasks."""
        seed: int = 0
        """Another seed generates other tasks."""

    def __init__(self, settings: Settings) -> None:
        """Raises ``ConfigError`` for an unknown data set, and for keys that it does not take."""
        self._entries = _create(settings)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, /) -> Task:
        return cast(Task, self._entries[index])


def _create(settings: ReasoningGymTasks.Settings) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if settings.dataset not in DATASETS:
        raise ConfigError(
            f"reasoning-gym has no data set {settings.dataset!r}", fix=near_matches(settings.dataset, DATASETS)
        )
    keys = settings.model_extra or {}
    known = set(DATASETS[settings.dataset][1].__dataclass_fields__)
    for key in keys:
        if key not in known:
            raise ConfigError(f"{settings.dataset} of reasoning-gym takes no {key!r}", fix=near_matches(key, known))
    try:
        return reasoning_gym.create_dataset(settings.dataset, size=settings.size, seed=settings.seed, **keys)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"reasoning-gym refuses the keys of {settings.dataset}: {error}", fix="see its configuration class"
        ) from error
