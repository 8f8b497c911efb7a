"""Learning health: which findings of the rules are said, when, and what is done about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agentrl.config.health import HealthAction, HealthSection
from agentrl.health.rules import RULES, WINDOW, History, Reading, Rule
from agentrl.runs.contract import MetricsLine

__all__ = ["ROLLED_BACK", "Finding", "Health"]

ROLLED_BACK = "health/rolled_back_to"
"""The metric of a step after which the run went back: the steps that the checkpoint's weights were made by."""

_CALM = 0.8
"""Share of the threshold below which a value counts as calm: one that wavers about its threshold is one trouble."""
_KEPT = frozenset(name for rule in RULES for name in rule.metrics)


@dataclass(frozen=True, slots=True)
class Finding:
    """A trouble that has begun."""

    rule: str
    """The rule's key in the config's section ``health``."""
    action: HealthAction
    """What the config wants done about it."""
    said: str
    """The metric, its value and what it means."""
    fix: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"health: {self.rule}: {self.said} ({self.fix})"


class Health:
    """Judges a run by the rules, from its metrics alone; owns no clock, and does nothing itself.

    A trouble is told when it begins, and not again before it has been over for ``WINDOW`` steps.
    """

    def __init__(self, section: HealthSection, planned: int, max_staleness: int = 0) -> None:
        """``planned`` is the run's number of steps, ``max_staleness`` its ``rollout.max_staleness``."""
        self._history = History(planned, max_staleness)
        self._rules = [(rule, *section.choice(rule.name, rule.threshold)) for rule in RULES]
        self._troubles: dict[tuple[str, str], int] = {}
        """Calm steps in a row since each trouble, by the rule and the kind."""
        self._judged = 0
        """Evaluations that have been judged."""

    def step(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """Take in the metrics of step ``step``, and return the troubles that have begun, those of rules that are off
        left out."""
        self._history.steps.append((step, _kept(metrics)))
        rules: Iterable[tuple[Rule, HealthAction, float]] = self._rules
        if len(self._history.evaluations) == self._judged:
            rules = (each for each in rules if each[0].after == "step")
        self._judged = len(self._history.evaluations)
        return self._findings(rules)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of an evaluation after step ``step``; it is judged with the next step, or at the end."""
        self._history.evaluations.append((step, _kept(metrics)))

    def end(self) -> list[Finding]:
        """The troubles that the last evaluation shows."""
        if len(self._history.evaluations) == self._judged:
            return []
        self._judged = len(self._history.evaluations)
        return self._findings(each for each in self._rules if each[0].after == "evaluation")

    def recall(self, lines: Iterable[MetricsLine]) -> None:
        """Take in the metrics that a run had logged before it was stopped; what they show has been said."""
        for _ in self.review(lines):
            pass

    def review(self, lines: Iterable[MetricsLine]) -> Iterator[tuple[int, Finding]]:
        """Take in metrics that a run has logged, and yield each trouble with the step that it was found after."""
        for line in lines:
            metrics = {name: value for name, value in line.metrics.items() if value is not None}
            if line.is_evaluation:
                self.evaluation(line.step, metrics)
            else:
                yield from ((line.step, found) for found in self.step(line.step, metrics))
            if ROLLED_BACK in metrics:
                self.back_to(int(metrics[ROLLED_BACK]))

    def back_to(self, step: int) -> None:
        """The run goes on from the weights after step ``step``: later ones are forgotten, and no trouble goes on."""
        self._history.cut(step)
        self._troubles.clear()
        self._judged = len(self._history.evaluations)

    def _findings(self, rules: Iterable[tuple[Rule, HealthAction, float]]) -> list[Finding]:
        findings = []
        for rule, action, threshold in rules:
            reading = None if action == "off" else rule.read(self._history, threshold)
            if reading is not None and self._begins(rule, reading):
                findings.append(Finding(rule.name, action, reading.said, reading.fix))
        return findings

    def _begins(self, rule: Rule, reading: Reading) -> bool:
        """Whether a reading is the beginning of a trouble."""
        begins = reading.excess > 1 and (rule.name, reading.kind) not in self._troubles
        for key in [key for key in self._troubles if key[0] == rule.name]:
            is_calm = reading.excess < _CALM or reading.kind != key[1]
            self._troubles[key] = self._troubles[key] + 1 if is_calm else 0
            if self._troubles[key] >= (WINDOW if rule.after == "step" else 1):
                del self._troubles[key]
        if reading.excess > 1:
            self._troubles[rule.name, reading.kind] = 0
        return begins


def _kept(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the rules read of a step's metrics."""
    return {name: metrics[name] for name in _KEPT & metrics.keys()}
