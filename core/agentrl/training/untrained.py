"""What of a step cannot be trained, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.rollout.contract import Episode, Group

__all__ = ["mostly_excluded", "refuse_untrainable", "too_long"]


def refuse_untrainable(episode: Episode | None, choices: bool) -> None:
    """Raise ``RunError`` for an ``episode`` of which grammars leave no token to train; ``None`` is no such episode.

    ``choices`` says whether tokens are trained that a grammar left a choice of.
    """
    if episode is None:
        return
    free = "free the policy with rollout.override: {response_format: null, tool_choice: null, strict: false}"
    train = "set rollout.constrained=train, which trains tokens where a grammar left a choice; or "
    raise RunError(
        f"nothing of episode {episode.key} can be trained: every token of it was constrained by a grammar"
        + (" that left no choice" if choices else ", and rollout.constrained=exclude leaves those out of the loss"),
        fix=free if choices else train + free,
    )


def mostly_excluded(metrics: Mapping[str, float]) -> str | None:
    """A warning where grammars leave little to train, such as nothing but the beginnings of tool calls."""
    excluded, trained = metrics["tokens/excluded"], metrics["tokens/trained"]
    if not trained or excluded <= trained:
        return None
    return (
        f"{excluded:.0f} of {excluded + trained:.0f} tokens are left out of the loss because a grammar constrained "
        "them (set rollout.constrained=train to train those where it left a choice, or give the policy its freedom "
        "with rollout.override, such as {strict: false} for tools)"
    )


def too_long(step: int, groups: Sequence[Group], config: Config) -> str | None:
    """A warning of the episodes of a step that are longer than a pass."""
    longest = config.training.pass_tokens
    lengths = [episode.tree.longest_path() for group in groups for episode in group.episodes]
    over = [length for length in lengths if length > longest]
    if not over:
        return None
    worth = "" if config.is_online else "; rollout.on_overflow says what they are worth"
    return (
        f"{len(over)} of {len(lengths)} episodes of step {step} are longer than a pass, and are "
        f"not trained (set training.tokens_per_batch={longest} to {max(over)} or more, or bound the agent's turns "
        f"and tokens{worth})"
    )
