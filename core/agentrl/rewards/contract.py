"""What a reward is: ``(answer, data, *, episode) -> float``, sync or async.

Of ``data`` and ``episode`` a function is given what its signature takes. A registered name may also
be a class: it is built once a run from the keys beside its name and its instances are called. ``agentrl.Reward`` is
a number that says what it is made of.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentrl.rollout.contract import EpisodeView


class RewardFunction(Protocol):
    """Scores an agent's answer to a task; any real number is a reward."""

    def __call__(self, answer: Any, data: dict[str, Any], *, episode: EpisodeView) -> float | Awaitable[float]: ...
