"""What a reward function is: it scores an agent's answer to a task.

With ``reward:`` set in the config, whatever an agent's ``run`` returns, except ``None``, is its answer, and the reward
function that the config names gives the episode its reward::

    def closeness(answer, data):
        return 1 / (1 + abs(float(answer) - float(data["answer"])))

An entry point of the group ``agentrl.rewards`` names a function, sync or async, or a class. A class is built once a run
from the keys that stand beside its name in the config, or from its ``Settings``, a pydantic model of those keys, where
it declares one; its instances are then called. A function's own keys are its further parameters. Rewards run in the
process that trains, also where agents run in worker processes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.costs.contract import Meter
from agentrl.errors import RewardError

if TYPE_CHECKING:
    from agentrl.rollout.contract import EpisodeView

__all__ = ["GroupRewardFunction", "KeepingRewardFunction", "ReportingRewardFunction", "RewardFunction"]


class RewardFunction(Protocol):
    """Scores an agent's answer to a task."""

    def __call__(self, answer: Any, data: dict[str, Any], *, episode: EpisodeView) -> float | Awaitable[float]:
        """The reward of ``answer``, what the agent's ``run`` returned, for the task ``data``.

        A function that does not take ``data`` or ``episode`` in its signature is called without them. Any finite real
        number is a reward, numpy's and ``bool`` included; an ``agentrl.Reward`` also says what it is made of. What the
        function raises, and any other value that it returns, fails the episode on the side of the reward, and the
        episode is not trained. ``agentrl.RewardError`` lets the message name a fix.
        """
        ...


class GroupRewardFunction(RewardFunction, Protocol):
    """Scores the answers of a group together, such as by ranking them.

    It is for comparisons within training. Where an episode stands alone, as each does in an evaluation, the object is
    called as any reward function. An object that compares only under some of its settings sets ``score_group`` to
    ``None`` under the others.
    """

    async def score_group(
        self, answers: Sequence[Any], data: dict[str, Any], *, episodes: Sequence[EpisodeView]
    ) -> Sequence[float | RewardError]:
        """One reward for each of ``answers``, in their order; a ``RewardError`` fails the episode of its answer alone.

        ``answers`` are those of the episodes of one task that have one: failed and rejected episodes are not among
        them, and there may be a single one. What the function raises fails all of them. ``episodes`` are their views,
        in the same order. The episodes are stored, and trained, with what is returned here.
        """
        ...


class KeepingRewardFunction(RewardFunction, Protocol):
    """Keeps files with the run, such as answers of a service that are paid for."""

    def keep_in(self, folder: Path) -> None:
        """``folder`` is the run's; called before the first answer is scored, again where the run is resumed.

        What scores outside of a run does not call it. Only a subfolder of a name of its own should be written to.
        """
        ...


class ReportingRewardFunction(RewardFunction, Protocol):
    """Asks models that cost something, and reports what they have used."""

    def report_to(self, meter: Meter) -> None:
        """``meter`` is the run's; called before the first answer is scored.

        Tell it of every request to a model, failed ones and retries included::

            self.meter.spend("rollout", "judge", "gpt-4o-mini", Usage.of_answer(answer["usage"]))

        The stage is ``rollout`` for episodes whose ``key.phase`` is ``train``, and ``evaluation`` for others. What
        scores outside of a run does not call it.
        """
        ...
