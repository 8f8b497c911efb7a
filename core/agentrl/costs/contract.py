"""What the models that a run asks have used, and how whoever asks one reports it.

The completer of the policy, judges and teachers report to the ``Meter`` of their run. A reward function of a plugin
that asks a model of its own takes the meter by a method ``report_to``: see ``agentrl.rewards.contract``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Protocol

__all__ = ["UNMETERED", "Meter", "Role", "Stage", "Usage"]

Stage = Literal["rollout", "evaluation", "learner", "proof"]
"""For what part of a run a model is asked: for episodes of training and their rewards, for evaluations, for the batch
of a step, or to prove that the engine has new weights."""
Role = Literal["policy", "judge", "teacher", "other"]
"""What a model is to the run; ``other`` is one that a plugin asks."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What requests to a model have used. Usages add up."""

    requests: int = 1
    """Those that were sent, each try counted."""
    unknown: int = 0
    """Those of them of which nobody says how many tokens they took, such as requests that failed."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens among them that had not to be computed again, as far as that is known."""
    completion_tokens: int = 0
    seconds: float = 0.0
    """How long the requests took; those that ran at the same time count each."""

    def __add__(self, other: Usage) -> Usage:
        names = [each.name for each in fields(Usage)]
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @classmethod
    def of_answer(cls, usage: object, seconds: float = 0.0) -> Usage:
        """One request, by the ``usage`` object of an answer of the OpenAI API.

        One that does not name the tokens of the prompt and of the completion is unknown.
        """
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        if prompt is None or completion is None:
            return cls(unknown=1, seconds=seconds)
        details = usage.get("prompt_tokens_details") if isinstance(usage, Mapping) else None
        cached = min(_count(details, "cached_tokens") or 0, prompt)
        return cls(1, 0, prompt, cached, completion, seconds)


def _count(usage: object, name: str) -> int | None:
    value: Any = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class Meter(Protocol):
    """Takes what the models that a run asks have used."""

    def spend(self, stage: Stage, role: Role, model: str, usage: Usage) -> None:
        """``model``, by the name that prices know it by, was asked in ``stage``. May be called from any thread."""
        ...


class _Unmetered:
    def spend(self, stage: Stage, role: Role, model: str, usage: Usage) -> None:
        """Keep no account."""


UNMETERED: Final[Meter] = _Unmetered()
"""For what runs outside of a run: nobody keeps account."""
