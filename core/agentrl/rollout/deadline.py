"""What an episode that took too long fails with, whoever ran it."""

from __future__ import annotations

from agentrl.errors import EpisodeTimeout, ModelTimeout
from agentrl.rollout.contract import Stage

__all__ = ["too_late"]


def too_late(deadline_s: float, stage: Stage) -> EpisodeTimeout:
    """The error of an episode that was in ``stage`` after ``deadline_s`` seconds.

    It is put down to whoever took most of them: the model, or the agent.
    """
    late = f"the episode did not end within {deadline_s:g} s; it was {stage.words}"
    if stage.waited > deadline_s / 2:
        return ModelTimeout(
            f"{late}, and had waited {stage.waited:.1f} s for the model in all",
            fix="see why the engine is that slow, lower rollout.concurrency, or raise rollout.episode_timeout",
            cause="the episode did not end in time for want of the model's answers",
        )
    return EpisodeTimeout(late, fix="raise rollout.episode_timeout, or make the agent faster")
