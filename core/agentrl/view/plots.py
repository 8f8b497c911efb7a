"""Which metrics are drawn together, and under which heading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentrl.reporting.meanings import Meaning, meaning_of

__all__ = ["GROUPS", "Group", "Plot", "groups_of"]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves on common axes."""

    title: str
    metrics: tuple[str, ...]
    """Names; one that ends with ``/*`` stands for all metrics that begin so, and are in no other plot by name."""
    is_stacked: bool = False
    """Whether the values are parts of a whole, one drawn on top of the other."""

    @property
    def key(self) -> str:
        """A name for links: the letters of its first metric."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.metrics[0])

    @property
    def meanings(self) -> tuple[Meaning, ...]:
        """What the metrics mean, each meaning once."""
        found = (meaning_of(metric) for metric in self.metrics)
        return tuple(dict.fromkeys(each for each in found if each is not None))


@dataclass(frozen=True, slots=True)
class Group:
    """Plots that answer one question."""

    key: str
    title: str
    question: str
    plots: tuple[Plot, ...]


_REST = "rest"

GROUPS = (
    Group(
        "reward",
        "Reward",
        "Does the agent do better, also on tasks that it was not trained on?",
        (
            Plot("Reward", ("reward/mean", "evaluation/reward", "evaluation/reward_greedy")),
            Plot("Spread of the rewards", ("reward/std",)),
            Plot("Parts of the reward", ("reward/parts/*", "evaluation/parts/*")),
            Plot("Loss on conversations", ("evaluation/loss",)),
            Plot("Perplexity", ("policy/perplexity", "evaluation/perplexity")),
        ),
    ),
    Group(
        "length",
        "Length",
        "Do episodes grow, and do limits cut them off?",
        (
            Plot("Sampled tokens an episode", ("episode/tokens",)),
            Plot("Calls an episode", ("episode/calls",)),
            Plot("Cut off", ("rollout/truncated", "rollout/limited", "rollout/limits/*")),
        ),
    ),
    Group(
        "entropy",
        "Entropy",
        "Does the policy still try different things?",
        (Plot("Entropy", ("policy/entropy", "penalty/entropy")),),
    ),
    Group(
        "kl",
        "KL and ratios",
        "Is the policy that is trained the one that sampled, and how far has it moved?",
        (
            Plot("Sampler against learner", ("policy/mismatch_kl",)),
            Plot("Policy against reference and teacher", ("penalty/kl", "teacher/kl")),
            Plot("Importance ratios", ("policy/ratio_mean", "policy/ratio_max", "policy/weight_mean")),
            Plot("Tokens that are cut off or left out", ("policy/clip_fraction", "policy/masked")),
        ),
    ),
    Group(
        "staleness",
        "Staleness",
        "How old is what is trained?",
        (
            Plot("Age of the trained tokens", ("staleness/mean", "staleness/max")),
            Plot("Tokens left out as too old", ("tokens/stale", "tokens/lost_lineage")),
        ),
    ),
    Group(
        "optimiser",
        "Optimiser",
        "Are the updates of a steady size?",
        (
            Plot("Loss", ("policy/loss",)),
            Plot("Norm of the gradient", ("policy/grad_norm",)),
            Plot("Learning rate", ("policy/learning_rate",)),
            Plot("Value head", ("value/loss", "value/explained_variance")),
        ),
    ),
    Group(
        "seconds",
        "Seconds by stage",
        "What does a step wait for?",
        (
            Plot(
                "Stages of a step",
                (
                    "seconds/rollout",
                    "seconds/learner",
                    "seconds/weights",
                    "seconds/proof",
                    "seconds/evaluation",
                    "seconds/checkpoint",
                ),
                is_stacked=True,
            ),
            Plot("The whole step, and waits for the learner", ("seconds/step", "seconds/held")),
            Plot("The learner's part", ("seconds/learner/*",), is_stacked=True),
        ),
    ),
    Group(
        "ledger",
        "Ledger",
        "What became of every episode, and why was one left out?",
        (
            Plot(
                "Episodes that trained nothing",
                (
                    "ledger/without_difference",
                    "ledger/filtered",
                    "ledger/rejected",
                    "ledger/failed",
                    "ledger/stale",
                    "ledger/over_long",
                    "ledger/constrained",
                    "ledger/without_tokens",
                ),
                is_stacked=True,
            ),
            Plot("Episodes received and trained", ("ledger/received", "ledger/trained")),
            Plot("Failures by their side", ("ledger/failed/*",), is_stacked=True),
        ),
    ),
    Group(
        "cost",
        "Cost",
        "What does a step cost?",
        (Plot("Money a step", ("cost/money",)), Plot("Everything that was counted", ("cost/*",))),
    ),
)
"""What a run's page draws, in its order; of it what the run has."""


def groups_of(names: Iterable[str]) -> list[Group]:
    """The groups of plots that a run with the metrics ``names`` has, and in the last one each metric that is left."""
    left = dict.fromkeys(names)
    exact = {metric for group in GROUPS for plot in group.plots for metric in plot.metrics if metric in left}
    found = []
    for group in GROUPS:
        plots = []
        for plot in group.plots:
            drawn = tuple(name for metric in plot.metrics for name in _named(metric, left, exact))
            if drawn:
                plots.append(Plot(plot.title, drawn, plot.is_stacked))
        for plot in plots:
            for name in plot.metrics:
                left.pop(name, None)
        if plots:
            found.append(Group(group.key, group.title, group.question, tuple(plots)))
    if left:
        rest = tuple(Plot(name, (name,)) for name in left)
        found.append(Group(_REST, "Everything else", "What else was counted?", rest))
    return found


def _named(metric: str, names: Iterable[str], exact: set[str]) -> list[str]:
    if metric.endswith("/*"):
        return [name for name in names if name.startswith(metric[:-1]) and name not in exact]
    return [metric] if metric in exact else []
