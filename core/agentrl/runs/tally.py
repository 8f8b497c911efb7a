"""What episodes were like: counts and means as metrics, and what went wrong in them, with the commonest reasons."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any, Final, Literal

from agentrl.errors import one_line, shortened
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Group

__all__ = ["Kind", "Reason", "Reasons", "Tally", "mean", "mean_parts", "normalised_by", "rollout_metrics", "sentence"]

Kind = Literal[
    "failed",
    "rejected",
    "mistaken",
    "limited",
    "retried",
    "truncated",
    "undelivered",
    "overridden",
    "unmet",
    "control_tokens",
    "normalised",
]

_BY_REQUEST: Final[tuple[Kind, ...]] = ("overridden", "unmet", "control_tokens", "normalised")
_LONGEST_REASON = 400
"""Most characters of a reason: a policy's mistake may be as long as what it wrote."""
_MOST_REASONS = 1000
"""Most reasons that are counted apart."""


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """The metrics of a step's groups: counts of episodes, calls and tokens, and means over the rewarded episodes.

    ``rollout/mistakes`` counts episodes that an error of the policy has ended, ``rollout/limited`` those in which it
    ran into a limit, which ``rollout/limits/LIMIT`` counts apart where there were any (``context``, ``turns``,
    ``tokens``, ``pass``), ``rollout/setbacks`` failures of calls and of whole attempts that were tried again,
    ``rollout/forks`` calls whose history had to be rendered anew, ``rollout/overridden`` calls whose fields
    ``rollout.override`` changed, ``rollout/unmet`` calls that did without something that they asked for,
    ``rollout/undelivered`` calls whose answers came too late for their client, and ``rollout/control_tokens`` calls
    whose texts the model read as control tokens, and ``rollout/normalised/RULE`` calls in whose texts of the system a
    rule of ``gateway.normalise`` replaced something; rules that replaced nothing have no
    metric. ``reward/parts/NAME`` is the mean of a named part of the rewards, over the episodes that have it.
    ``episode/seconds``, ``episode/calls`` and ``episode/tokens``, of sampled tokens, are means.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    calls = [call for episode in episodes for call in episode.calls]
    rewards = [episode.reward for episode in episodes if episode.reward is not None]
    metrics: dict[str, float] = {
        "rollout/episodes": len(episodes),
        "rollout/failed": sum(episode.outcome == "failed" for episode in episodes),
        "rollout/rejected": sum(episode.outcome == "rejected" for episode in episodes),
        "rollout/mistakes": sum(episode.mistake is not None and episode.limit is None for episode in episodes),
        "rollout/limited": sum(episode.limit is not None for episode in episodes),
        "rollout/retried": sum(episode.attempts > 1 for episode in episodes),
        "rollout/setbacks": sum(len(episode.setbacks) for episode in episodes),
        "rollout/calls": len(calls),
        "rollout/forks": sum(call.fork_reason is not None for call in calls),
        "rollout/overridden": sum(bool(call.overridden) for call in calls),
        "rollout/undelivered": sum(not call.delivered for call in calls),
        "rollout/unmet": sum(bool(call.unmet) for call in calls),
        "rollout/control_tokens": sum(bool(call.control_tokens) for call in calls),
        "rollout/truncated": sum(call.finish_reason == "length" for call in calls),
        "tokens/prompt": sum(call.prompt_tokens for call in calls),
        "tokens/completion": sum(call.completion_tokens for call in calls),
        "episode/seconds": statistics.fmean(episode.seconds for episode in episodes),
        "episode/calls": len(calls) / len(episodes),
        "episode/tokens": sum(call.completion_tokens for call in calls) / len(episodes),
    }
    if rewards:
        metrics["reward/mean"] = mean(rewards)
        metrics["reward/std"] = statistics.pstdev(rewards)
    limits = Counter(episode.limit for episode in episodes if episode.limit is not None)
    metrics |= {f"rollout/limits/{limit}": count for limit, count in sorted(limits.items())}
    rules = Counter(rule for call in calls for rule in normalised_by(call))
    metrics |= {f"rollout/normalised/{rule}": count for rule, count in sorted(rules.items())}
    return metrics | {f"reward/parts/{name}": value for name, value in mean_parts(episodes).items()}


def normalised_by(call: Call) -> tuple[str, ...]:
    """The rules of ``gateway.normalise`` that replaced something in a call, each once."""
    return tuple(dict.fromkeys(each.rule for each in call.normalised))


def mean(values: Sequence[float]) -> float:
    """The mean of ``values``, which may be as large as a float can be: their sum in floats would be infinite."""
    return float(statistics.mean(values))


def mean_parts(episodes: Iterable[Episode]) -> dict[str, float]:
    """The mean of each part of the rewards by its name, over the episodes whose reward has that part."""
    values: dict[str, list[float]] = {}
    for episode in episodes:
        for name, value in episode.reward_parts.items():
            values.setdefault(name, []).append(value)
    return {name: mean(those) for name, those in sorted(values.items())}


@dataclass(slots=True)
class Reason:
    """How often something has happened for one reason."""

    reason: str
    """The reason in the words of its first occurrence."""
    episode: str
    """Key of the episode in which it first happened."""
    count: int = 0

    def __str__(self) -> str:
        return f"{self.count}x {self.reason} [{self.episode}]"


class Reasons:
    """Counts occurrences by their fingerprints, at most 1000 of them apart; any further one counts as "other"."""

    def __init__(self) -> None:
        self._by_fingerprint: dict[str, Reason] = {}
        self.total = 0
        """How many occurrences were added."""

    def add(self, fingerprint: str, reason: str, key: EpisodeKey) -> bool:
        """Count an occurrence in the episode ``key``. Returns whether its fingerprint is a new one.

        Where ``fingerprint`` is empty, ``reason`` takes its place.
        """
        self.total += 1
        known = self._by_fingerprint.get(fingerprint or reason)
        if known is None and len(self._by_fingerprint) >= _MOST_REASONS:
            known = self._by_fingerprint.setdefault("", Reason("other causes", str(key)))
        if known is None:
            shown = shortened(one_line(reason), _LONGEST_REASON)
            self._by_fingerprint[fingerprint or reason] = Reason(shown, str(key), 1)
            return True
        known.count += 1
        return False

    def commonest(self, most: int) -> list[Reason]:
        """At most ``most`` reasons, the commonest first, and of equally common ones the earliest first."""
        return nlargest(most, list(self._by_fingerprint.values()), key=lambda reason: reason.count)


@dataclass
class Tally:
    """Adds up episodes of any phase. Another thread may read it; what it reads may be a moment out of date."""

    episodes: int = 0
    kinds: Mapping[Kind, Reasons] = field(default_factory=lambda: {kind: Reasons() for kind in _TEXTS})

    def add(self, episode: Episode) -> list[Failure]:
        """Count an episode. Returns its failures whose fingerprints are new, those that were tried again included."""
        self.episodes += 1
        new = []
        for kind, fingerprint, reason, failure in _occurrences(episode):
            if self.kinds[kind].add(fingerprint, reason, episode.key) and failure is not None:
                new.append(failure)
        return new

    def count(self, kind: Kind) -> int:
        """How many of ``kind``: calls for the last six kinds, attempts for ``retried``, episodes for the others."""
        return self.kinds[kind].total

    def counts(self) -> dict[str, Any]:
        """How many there were of every kind, by its name, as plain JSON."""
        return {kind: self.count(kind) for kind in self.kinds}

    def reasons(self, most: int = 3) -> dict[str, list[dict[str, Any]]]:
        """At most ``most`` of the commonest reasons of each kind that there was, as plain JSON."""
        return {
            kind: [asdict(reason) for reason in reasons.commonest(most)]
            for kind, reasons in self.kinds.items()
            if reasons.total
        }

    def brief(self) -> list[str]:
        """The counts above 0, each as "3 failed"; kinds that a request or the config asks for are left out."""
        return [f"{total} {kind}" for kind in _TEXTS if (total := self.count(kind)) and kind not in _BY_REQUEST]

    def lines(self, kinds: Iterable[Kind] | None = None) -> list[str]:
        """A sentence for each of ``kinds``, by default all, that there was, with its commonest reason."""
        return list(self._lines(_TEXTS if kinds is None else kinds))

    def _lines(self, kinds: Iterable[Kind]) -> Iterator[str]:
        for kind in kinds:
            for commonest in self.kinds[kind].commonest(1):
                yield sentence(kind, self.count(kind), self.episodes, commonest)


_TEXTS: Final[dict[Kind, str]] = {
    "failed": "{count:,} of {episodes:,} episodes failed",
    "rejected": "{count:,} of {episodes:,} episodes were rejected",
    "mistaken": "{count:,} of {episodes:,} episodes ended with a mistake of the policy",
    "limited": "in {count:,} of {episodes:,} episodes the policy ran into a limit",
    "retried": "{count:,} failed call{s} or attempt{s} {were} tried again",
    "truncated": "{count:,} completion{s} {were} cut at {their} limit of tokens",
    "undelivered": "{count:,} completion{s} could not be delivered",
    "overridden": "{count:,} call{s} {were} changed by rollout.override",
    "unmet": "{count:,} call{s} did without something that {they} asked for",
    "normalised": "{count:,} call{s} had texts of the system changed by gateway.normalise",
    "control_tokens": (
        "{count:,} call{s} held texts that the model reads as control tokens (model.control_tokens=plain)"
    ),
}
"""The sentence that counts a kind; the worst kind is first."""
_SINGULAR: Final = {"s": "", "were": "was", "their": "its", "they": "it"}
_PLURAL: Final = {"s": "s", "were": "were", "their": "their", "they": "they"}


def sentence(kind: Kind, count: int, episodes: int, commonest: Reason) -> str:
    """How many of ``kind`` there were in ``episodes`` episodes, and the commonest reason."""
    words = _SINGULAR if count == 1 else _PLURAL
    return f"{_TEXTS[kind].format(count=count, episodes=episodes, **words)}; commonest: {commonest}"


def _occurrences(episode: Episode) -> Iterator[tuple[Kind, str, str, Failure | None]]:
    """Kind, fingerprint and reason of all that is counted in an episode, and the failure where it is one."""
    if (failure := episode.failure) is not None:
        yield "failed", failure.kind, str(failure), failure
    if episode.outcome == "rejected":
        yield "rejected", episode.mistake_fingerprint, episode.mistake or "the agent returned None", None
    if episode.mistake is not None:
        kind: Kind = "mistaken" if episode.limit is None else "limited"
        yield kind, episode.mistake_fingerprint, episode.mistake, None
    for setback in episode.setbacks:
        yield "retried", setback.kind, str(setback), setback
    for call in episode.calls:
        yield from _of_call(call)


def _of_call(call: Call) -> Iterator[tuple[Kind, str, str, None]]:
    if call.finish_reason == "length":
        yield "truncated", "", f"after {call.completion_tokens:,} tokens", None
    if not call.delivered:
        yield "undelivered", "", "the agent's client had gone", None
    if call.overridden:
        yield "overridden", "", ", ".join(call.overridden), None
    if call.unmet:
        yield "unmet", "", ", ".join(call.unmet), None
    if rules := normalised_by(call):
        yield "normalised", "", ", ".join(rules), None
    if call.control_tokens:
        yield "control_tokens", "", ", ".join(call.control_tokens), None
