"""The reward of generated `reasoning-gym` tasks, which their data set's own scorer gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentrl.errors import RewardError
from agentrl.extras import require

__all__ = ["reasoning_gym_score"]

require("reasoning_gym")  # At import, so that the reward is refused when it is chosen, not in every episode.


def reasoning_gym_score(answer: object, data: Mapping[str, Any]) -> float:
    """The score of ``answer`` for the task ``data``, between 0 and 1.

    Raises ``RewardError`` for a task that does not come from reasoning-gym.
    """
    import reasoning_gym

    metadata = data.get("metadata")
    if not isinstance(metadata, Mapping) or "source_dataset" not in metadata:
        raise RewardError(
            "the task does not come from reasoning-gym: it has no metadata.source_dataset",
            fix="use this reward with tasks {name: reasoning-gym, dataset: …}",
        )
    score = reasoning_gym.get_score_answer_fn(metadata["source_dataset"])
    return float(score(answer=str(answer).strip(), entry=data))
