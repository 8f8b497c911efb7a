"""Loading the reward function that a config names, and calling it with an agent's answer."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.agents.exceptions import code_location, fingerprint_of
from agentrl.agents.result import Reward, as_number, parts_of
from agentrl.agents.watchdog import Holder
from agentrl.costs.contract import Meter
from agentrl.errors import AgentRLError, ConfigError, RewardError, shown

if TYPE_CHECKING:
    from agentrl.plugins.building import PartLike
    from agentrl.plugins.manager import Plugins
    from agentrl.rollout.contract import EpisodeView

__all__ = [
    "REWARD",
    "RewardBlocked",
    "Scorer",
    "call_group_reward",
    "call_reward",
    "is_group_reward",
    "load_reward",
]

_FASTER = "make the reward faster, let it await instead of blocking, or raise rollout.episode_timeout"


class RewardBlocked(RewardError):
    """Raised inside a reward function that blocked the event loop for longer than an episode may take."""

    def __init__(self) -> None:
        super().__init__("the reward blocked the event loop past the episode's deadline", fix=_FASTER)


REWARD = Holder("the reward", RewardBlocked, _FASTER)
"""How a watchdog of the event loop names the code that ``call_reward`` runs."""

_OFFERED = ("data", "episode")
"""What a reward function may take beside the answer, by the names of its parameters."""


def load_reward(plugins: Plugins, part: PartLike, *, at: str = "reward") -> Callable[..., Any]:
    """The reward function that ``part`` names. Raises ``ConfigError`` for one that could not be called.

    ``at`` is the key of the configuration that it stands at.
    """
    reward: Callable[..., Any] = plugins.build("rewards", part, at=at, plugins=plugins, config_key=at)
    if not callable(reward):
        raise ConfigError(f"reward {part.name!r} is a {type(reward).__name__}, not a function", fix="register one")
    try:
        inspect.signature(reward).bind(None, **dict.fromkeys(_taken(reward)))
    except TypeError as error:
        raise ConfigError(
            f"reward {part.name!r} cannot be called: {error}", fix="its signature is (answer, data, *, episode)"
        ) from error
    return reward


def is_group_reward(reward: Callable[..., Any]) -> bool:
    """Whether ``reward`` scores the answers of a training group together: see ``GroupRewardFunction``."""
    return getattr(reward, "score_group", None) is not None


@dataclass(frozen=True, slots=True)
class Scorer:
    """A run's reward function, as what runs the episodes calls it."""

    reward: Callable[..., Any]

    async def __call__(self, answer: Any, data: Mapping[str, Any], view: EpisodeView) -> float:
        """The reward of one answer; see ``call_reward``."""
        return await call_reward(self.reward, answer, data, view)

    @property
    def compares(self) -> bool:
        """Whether it scores the answers of a training group together."""
        return is_group_reward(self.reward)

    async def of_group(
        self, answers: Sequence[Any], data: Mapping[str, Any], views: Sequence[EpisodeView]
    ) -> Sequence[float | RewardError]:
        """The rewards of the answers of a group; see ``call_group_reward``."""
        return await call_group_reward(self.reward, answers, data, views)

    def keep_in(self, folder: Path) -> None:
        """Tell the reward the run's folder, where it wants to know it."""
        keep = getattr(self.reward, "keep_in", None)
        if keep is not None:
            keep(folder)

    def report_to(self, meter: Meter) -> None:
        """Have the reward report to ``meter`` what the models that it asks have used, where it asks any."""
        report = getattr(self.reward, "report_to", None)
        if report is not None:
            report(meter)


async def call_reward(reward: Callable[..., Any], answer: Any, data: Mapping[str, Any], view: EpisodeView) -> float:
    """The reward that ``reward`` gives ``answer``, with its parts where it returns a ``Reward`` that has some.

    ``data`` and ``view`` are passed on as far as its signature takes ``data`` and ``episode``. Raises ``RewardError``
    where the function raises or returns anything but a finite real number, with the place in its author's code.
    """
    offered = {"data": data, "episode": view}
    try:
        returned = reward(answer, **{name: offered[name] for name in _taken(reward)})
        if inspect.isawaitable(returned):
            returned = await returned
    except AgentRLError:
        raise
    except Exception as error:
        raise _raised(error, f"the answer {shown(answer, 80)}") from error
    return _number(returned, answer)


async def call_group_reward(
    reward: Any, answers: Sequence[Any], data: Mapping[str, Any], views: Sequence[EpisodeView]
) -> list[float | RewardError]:
    """What ``reward`` gives the ``answers`` of a group when it scores them together, with their parts.

    An answer that it excludes, or gives anything but a finite real number, has a ``RewardError`` in its place. Raises
    ``RewardError`` where the function raises, or does not return one reward for each answer.
    """
    try:
        returned = list(await reward.score_group(answers, data, episodes=views))
    except AgentRLError:
        raise
    except Exception as error:
        raise _raised(error, f"the {len(answers)} answers of a group") from error
    if len(returned) != len(answers):
        raise RewardError(
            f"the reward returned {len(returned)} rewards for the {len(answers)} answers of a group",
            fix="return one for each, in their order",
            fingerprint="the reward returned another number of rewards than a group has answers",
        )
    return [_number_or_error(each, answer) for each, answer in zip(returned, answers, strict=True)]


def _raised(error: Exception, what: str) -> RewardError:
    place = code_location(traceback.extract_tb(error.__traceback__))
    return RewardError(
        f"the reward raised {type(error).__name__} for {what}: {error}{place}",
        fingerprint=f"the reward raised {fingerprint_of(error)}",
    )


def _number_or_error(returned: Any, answer: Any) -> float | RewardError:
    if isinstance(returned, RewardError):
        return returned
    try:
        return _number(returned, answer)
    except RewardError as error:
        return error


def _number(returned: Any, answer: Any) -> float:
    number = as_number(returned)
    if number is None or not math.isfinite(number):
        raise RewardError(
            f"the reward returned {shown(returned, 80)} for the answer {shown(answer, 80)}",
            fix="return a finite real number",
            fingerprint=f"the reward returned a {type(returned).__name__} that is no finite real number",
        )
    parts = parts_of(returned)
    return Reward(number, **parts) if parts else number


def _taken(reward: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(reward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return list(_OFFERED)
    return [name for name in _OFFERED if name in parameters and name != next(iter(parameters))]
