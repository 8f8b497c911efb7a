"""``sum``: a reward made of others, by weights, penalties, and gates that an answer must pass."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from agentrl.agents.result import Reward, parts_of
from agentrl.config.section import PartModel, Section
from agentrl.costs.contract import Meter
from agentrl.errors import RewardError
from agentrl.rewards.scoring import Scorer, load_reward
from agentrl.rollout.contract import EpisodeView

if TYPE_CHECKING:
    from agentrl.plugins.manager import Plugins

__all__ = ["SumReward"]

_LABEL = re.compile(r"[A-Za-z0-9_-]+")


class WeightedReward(PartModel):
    """A reward, its keys, and what it weighs."""

    weight: float = Field(1.0, gt=0, strict=True, allow_inf_nan=False)
    """What the reward is multiplied by before it is added, or subtracted where it is a penalty."""


class Gate(PartModel):
    """A reward, its keys, and what of it an answer must have."""

    at_least: float = Field(1.0, strict=True, allow_inf_nan=False)
    """The least reward that passes."""
    otherwise: float = Field(0.0, strict=True, allow_inf_nan=False)
    """What the whole is for an answer that does not pass. Where several gates are closed, the first one counts."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Weighted = Annotated[WeightedReward, BeforeValidator(_named)]
Gated = Annotated[Gate, BeforeValidator(_named)]


class SumSettings(Section):
    """Keys of `sum`."""

    parts: dict[str, Weighted] = Field({})
    """What is added: rewards by labels of your own, each a name or `{name: …, weight: 1.0, its keys}`."""
    penalties: dict[str, Weighted] = Field({})
    """What is subtracted, written as `parts` are."""
    gates: dict[str, Gated] = Field({})
    """What comes first: each a name or `{name: …, at_least: 1.0, otherwise: 0.0, its keys}`. An answer whose reward
    by a gate is below `at_least` is worth `otherwise`, and nothing else scores it."""

    @model_validator(mode="after")
    def _labelled(self) -> SumSettings:
        labels = [*self.gates, *self.parts, *self.penalties]
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise ValueError(f"{label!r} is no label: letters, digits, - and _ make one, since metrics have it")
            if labels.count(label) > 1:
                raise ValueError(f"the label {label!r} stands for several rewards: give each its own")
        if not self.parts and not self.penalties:
            raise ValueError("parts is empty: name the rewards to add up, such as parts: {right: exact-match}")
        return self


class SumReward:
    """The weighted sum of other rewards, less penalties; a fixed value for what does not pass every gate."""

    Settings = SumSettings

    def __init__(self, settings: SumSettings, plugins: Plugins, config_key: str = "reward") -> None:
        """Raises ``ConfigError`` or ``PluginError`` for the first reward in it that cannot be loaded."""

        def loaded(kind: str, parts: Mapping[str, PartModel]) -> dict[str, Scorer]:
            return {
                label: Scorer(load_reward(plugins, part, at=f"{config_key}.{kind}.{label}"))
                for label, part in parts.items()
            }

        self._settings = settings
        self._gates = loaded("gates", settings.gates)
        self._summed = loaded("parts", settings.parts) | loaded("penalties", settings.penalties)
        self._weights = {label: part.weight for label, part in settings.parts.items()}
        self._weights |= {label: -part.weight for label, part in settings.penalties.items()}
        compares = any(scorer.compares for scorer in (*self._gates.values(), *self._summed.values()))
        self.score_group: Callable[..., Coroutine[Any, Any, list[Reward | RewardError]]] | None
        """``None`` where none of the rewards compares the answers of a group."""
        self.score_group = self._score_group if compares else None

    def keep_in(self, folder: Path) -> None:
        """Tell the run's folder to every reward in it that wants to know it."""
        for scorer in (*self._gates.values(), *self._summed.values()):
            scorer.keep_in(folder)

    def report_to(self, meter: Meter) -> None:
        """Have every reward in it that asks models report what they have used."""
        for scorer in (*self._gates.values(), *self._summed.values()):
            scorer.report_to(meter)

    async def __call__(self, answer: Any, data: Mapping[str, Any], *, episode: EpisodeView) -> Reward:
        """The sum for one answer, with what each reward in it gave as a part. Raises the first error of theirs."""
        (scored,) = await self._scored([answer], data, [episode], together=False)
        if isinstance(scored, RewardError):
            raise scored
        return scored

    async def _score_group(
        self, answers: Sequence[Any], data: Mapping[str, Any], *, episodes: Sequence[EpisodeView]
    ) -> list[Reward | RewardError]:
        """The sums for the answers of a group. Only those that pass the gates are compared with each other."""
        return await self._scored(answers, data, episodes, together=True)

    async def _scored(
        self, answers: Sequence[Any], data: Mapping[str, Any], views: Sequence[EpisodeView], *, together: bool
    ) -> list[Reward | RewardError]:
        found: list[dict[str, float]] = [{} for _ in answers]
        ended: dict[int, Reward | RewardError] = {}

        async def add(scorers: Mapping[str, Scorer]) -> None:
            """Have ``scorers`` score what has not ended, into ``found``; an error ends its answer."""
            open_ = [index for index in range(len(answers)) if index not in ended]
            if not open_:
                return
            picked, seen = [answers[index] for index in open_], [views[index] for index in open_]
            works = [_scores(scorer, picked, data, seen, together) for scorer in scorers.values()]
            for label, rewards in zip(scorers, await _all_of(works), strict=True):
                for index, reward in zip(open_, rewards, strict=True):
                    if isinstance(reward, RewardError):
                        ended.setdefault(index, _labelled(reward, label))
                    else:
                        found[index][label] = reward

        await add(self._gates)
        for index in range(len(answers)):
            closed = [
                gate for label, gate in self._settings.gates.items() if found[index].get(label, 0) < gate.at_least
            ]
            if closed and index not in ended:
                ended[index] = _with_parts(closed[0].otherwise, found[index])
        await add(self._summed)
        return [
            ended[index]
            if index in ended
            else _with_parts(sum(weight * parts[label] for label, weight in self._weights.items()), parts)
            for index, parts in enumerate(found)
        ]


async def _scores(
    scorer: Scorer, answers: Sequence[Any], data: Mapping[str, Any], views: Sequence[EpisodeView], together: bool
) -> Sequence[float | RewardError]:
    """What ``scorer`` gives each answer, with an error in the place of a reward that could not be given."""
    if together and scorer.compares:
        try:
            return await scorer.of_group(answers, data, views)
        except RewardError as error:
            return [error] * len(answers)

    async def one(answer: Any, view: EpisodeView) -> float | RewardError:
        try:
            return await scorer(answer, data, view)
        except RewardError as error:
            return error

    return await _all_of([one(answer, view) for answer, view in zip(answers, views, strict=True)])


async def _all_of(works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of ``works``, which run at once; the first error once all have ended."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RewardError):
            raise result
    return results


def _labelled(error: RewardError, label: str) -> RewardError:
    labelled = RewardError(f"{label}: {error.message}", fix=error.fix, fingerprint=error.fingerprint)
    labelled.__cause__ = error
    return labelled


def _with_parts(value: float, found: Mapping[str, float]) -> Reward:
    """``value`` with the parts that it was made of, and what these were made of in turn."""
    parts: dict[str, float] = {}
    for label, reward in found.items():
        parts[label] = float(reward)
        parts |= {f"{label}.{name}": part for name, part in parts_of(reward).items()}
    return Reward(value, **parts)
