"""What an episode that took too long fails with, whoever ran it."""

from __future__ import annotations

from agentrl.errors import EpisodeTimeout

__all__ = ["too_late"]


def too_late(deadline_s: float, stage: str) -> EpisodeTimeout:
    """The error of an episode that was in ``stage`` after ``deadline_s`` seconds."""
    return EpisodeTimeout(
        f"the episode did not end within {deadline_s:g} s; it was {stage}",
        fix="raise rollout.episode_timeout, or make the agent faster",
    )
