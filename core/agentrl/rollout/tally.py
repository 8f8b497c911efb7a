"""Counting what did not go as it should in episodes, and why most often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any, Final, Literal

from agentrl.errors import one_line, shortened
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure

__all__ = ["Cause", "Causes", "Kind", "Tally", "sentence"]

Kind = Literal[
    "failed", "rejected", "mistaken", "retried", "truncated", "undelivered", "overridden", "unmet", "control_tokens"
]

_BY_REQUEST: Final[tuple[Kind, ...]] = ("overridden", "unmet", "control_tokens")
_REASON = 400
"""Most characters of a reason: a policy's mistake may be as long as what it wrote."""
_KEPT = 1000
"""Most causes that are told apart."""


@dataclass(slots=True)
class Cause:
    """How often something has happened, and what it was the first time."""

    reason: str
    episode: str
    """Key of the episode in which it first happened."""
    count: int = 0

    def __str__(self) -> str:
        return f"{self.count}x {self.reason} [{self.episode}]"


class Causes:
    """Counts by cause. Many different ones are kept apart, and the rest is counted as others."""

    def __init__(self) -> None:
        self._causes: dict[str, Cause] = {}
        self.total = 0
        """How many were added."""

    def add(self, cause: str, reason: str, key: EpisodeKey) -> bool:
        """Count one of ``cause``, by default its own ``reason``, in the episode ``key``; whether it is a new one."""
        self.total += 1
        known = self._causes.get(cause or reason)
        if known is None and len(self._causes) >= _KEPT:
            known = self._causes.setdefault("", Cause("other causes", str(key)))
        if known is None:
            self._causes[cause or reason] = Cause(shortened(one_line(reason), _REASON), str(key), 1)
            return True
        known.count += 1
        return False

    def commonest(self, most: int) -> list[Cause]:
        """At most ``most`` of them, the commonest first, the earlier before the later."""
        return nlargest(most, list(self._causes.values()), key=lambda cause: cause.count)


@dataclass
class Tally:
    """Adds up episodes of any phase. Reading it from another thread is safe, if a moment out of date."""

    episodes: int = 0
    kinds: Mapping[Kind, Causes] = field(default_factory=lambda: {kind: Causes() for kind in _TEXTS})

    def add(self, episode: Episode) -> list[Failure]:
        """Count an episode. Returns those of its failures, overcome ones included, whose cause is new."""
        self.episodes += 1
        new = []
        for kind, cause, reason, failure in _happenings(episode):
            if self.kinds[kind].add(cause, reason, episode.key) and failure is not None:
                new.append(failure)
        return new

    def count(self, kind: Kind) -> int:
        """How many there were of ``kind``: calls of the last five, tries of ``retried``, episodes of the others."""
        return self.kinds[kind].total

    def counts(self) -> dict[str, Any]:
        """How many there were of every kind, by its name, as plain JSON."""
        return {kind: self.count(kind) for kind in self.kinds}

    def reasons(self, most: int = 3) -> dict[str, list[dict[str, Any]]]:
        """The commonest causes of each kind that there was, as plain JSON."""
        return {
            kind: [asdict(cause) for cause in causes.commonest(most)]
            for kind, causes in self.kinds.items()
            if causes.total
        }

    def brief(self) -> list[str]:
        """The counts that are not 0, each in a few words; what is so by the request is left out."""
        return [f"{total} {kind}" for kind in _TEXTS if (total := self.count(kind)) and kind not in _BY_REQUEST]

    def lines(self, kinds: Iterable[Kind] | None = None) -> list[str]:
        """A sentence for each of ``kinds``, by default of all, that there was, with its commonest cause."""
        return list(self._lines(_TEXTS if kinds is None else kinds))

    def _lines(self, kinds: Iterable[Kind]) -> Iterator[str]:
        for kind in kinds:
            for commonest in self.kinds[kind].commonest(1):
                yield sentence(kind, self.count(kind), self.episodes, commonest)


_TEXTS: Final[dict[Kind, str]] = {
    "failed": "{count:,} of {episodes:,} episodes failed",
    "rejected": "{count:,} of {episodes:,} episodes were rejected",
    "mistaken": "{count:,} of {episodes:,} episodes ended with a mistake of the policy",
    "retried": "{count:,} failed call{s} or attempt{s} {were} tried again",
    "truncated": "{count:,} completion{s} {were} cut at {their} limit of tokens",
    "undelivered": "{count:,} completion{s} could not be delivered",
    "overridden": "{count:,} call{s} {were} changed by rollout.override",
    "unmet": "{count:,} call{s} did without something that {they} asked for",
    "control_tokens": (
        "{count:,} call{s} held texts that the model reads as control tokens (model.control_tokens=plain)"
    ),
}
"""What a kind is called in a sentence, the worst first."""
_SINGULAR: Final = {"s": "", "were": "was", "their": "its", "they": "it"}
_PLURAL: Final = {"s": "s", "were": "were", "their": "their", "they": "they"}


def sentence(kind: Kind, count: int, episodes: int, commonest: Cause) -> str:
    """How many of ``kind`` there were in ``episodes`` episodes, and the commonest cause."""
    words = _SINGULAR if count == 1 else _PLURAL
    return f"{_TEXTS[kind].format(count=count, episodes=episodes, **words)}; commonest: {commonest}"


def _happenings(episode: Episode) -> Iterator[tuple[Kind, str, str, Failure | None]]:
    """Kind, cause, reason, and the failure if it is one."""
    if (failure := episode.failure) is not None:
        yield "failed", failure.kind, str(failure), failure
    if episode.outcome == "rejected":
        yield "rejected", "", "the agent returned None", None
    if episode.mistake is not None:
        yield "mistaken", episode.mistake_cause, episode.mistake, None
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
    if call.control_tokens:
        yield "control_tokens", "", ", ".join(call.control_tokens), None
