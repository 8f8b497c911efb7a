"""The section ``health``: what is done when the metrics show that learning is in trouble."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from agentrl.config.section import Section

__all__ = [
    "HealthAction",
    "HealthRuleModel",
    "HealthSection",
]

HealthAction = Literal["off", "warn", "stop", "rollback"]


class HealthRuleModel(Section):
    """What is done when a rule of learning health finds something, and from where on it does."""

    action: HealthAction
    """`off`, `warn`, `stop` or `rollback`."""
    threshold: float | None = Field(None, gt=0)
    """Threshold of the rule. Null takes the documented one."""

    @model_serializer
    def _short(self) -> Any:
        """A rule without a threshold of its own is written as its action."""
        return self.action if self.threshold is None else {"action": self.action, "threshold": self.threshold}


def _acted(value: Any) -> Any:
    """``{action: …}`` for a rule that is written as its action alone, or whose action other sources call a name."""
    if isinstance(value, dict) and "name" in value:
        return {"action": value["name"], **{key: held for key, held in value.items() if key != "name"}}
    if value is None or isinstance(value, int | float):
        raise ValueError(
            f"should be off, warn, stop or rollback, or {{threshold: …}} with a number, not {json.dumps(value)}"
        )
    return {"action": value} if isinstance(value, str) else value


def _share(rule: HealthRuleModel) -> HealthRuleModel:
    """A share is at most 1, so that a rule with such a threshold would never find anything."""
    if rule.threshold is not None and rule.threshold >= 1:
        raise ValueError(
            f"threshold should be below 1, not {rule.threshold:g}: it is compared with a share (off turns the rule off)"
        )
    return rule


HealthRule = Annotated[HealthRuleModel, BeforeValidator(_acted)]
HealthShare = Annotated[HealthRuleModel, BeforeValidator(_acted), AfterValidator(_share)]
_WARN = HealthRuleModel(action="warn")


class HealthSection(Section):
    no_update: HealthRule = _WARN
    """A step changes no weights, or nothing at all is learned."""
    zero_variance: HealthShare = _WARN
    """In most groups no episode does better than another."""
    entropy_collapse: HealthRule = _WARN
    """The policy's entropy falls to a fraction of what it was: it hardly explores any more."""
    length_growth: HealthRule = _WARN
    """Episodes grow longer, and rewards do not rise."""
    truncation: HealthShare = _WARN
    """Many completions are cut at their limit of tokens."""
    mismatch_kl: HealthRule = HealthRuleModel(action="stop")
    """Tokens are trained that the learner's policy would hardly have sampled."""
    clip_fraction: HealthShare = _WARN
    """The objective cuts off the gradient of many tokens."""
    staleness: HealthRule = _WARN
    """The trained tokens are of much older weights."""
    stale_share: HealthShare = _WARN
    """Many episodes or tokens are left out because they are too old."""
    reward_gap: HealthRule = _WARN
    """Rewards of training rise, and those of held-out tasks do not."""
    stage_wait: HealthShare = _WARN
    """Learner or rollouts spend most of their time waiting for the other, though `rollout.max_staleness` is above 0."""
    most_rollbacks: int = Field(2, ge=0)
    """How often a run goes back to its best checkpoint before it stops instead."""

    @model_validator(mode="before")
    @classmethod
    def _keeping_actions(cls, values: Any) -> Any:
        """A rule of which only the threshold is set keeps its default action."""
        if values is None or isinstance(values, str | int | float):
            given = values if isinstance(values, str) else json.dumps(values)
            raise ValueError(
                f"should be rules with off, warn, stop or rollback for each, such as {{truncation: off}}, not {given}"
            )
        if not isinstance(values, dict):
            return values
        return {
            name: {"action": cls.model_fields[name].default.action, **value}
            if isinstance(value, dict) and name in cls.model_fields and not {"action", "name"} & value.keys()
            else value
            for name, value in values.items()
        }

    def choice(self, name: str, threshold: float) -> tuple[HealthAction, float]:
        """The action and the threshold of the rule ``name``, whose documented threshold is ``threshold``."""
        rule: HealthRuleModel = getattr(self, name)
        return rule.action, threshold if rule.threshold is None else rule.threshold

    @property
    def rolling_back(self) -> list[str]:
        """The rules that go back to the best checkpoint."""
        rules = {name: value for name, value in self if isinstance(value, HealthRuleModel)}
        return [name for name, rule in rules.items() if rule.action == "rollback"]
