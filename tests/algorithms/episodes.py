"""Episodes as the gateway records them, made by hand or at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrl.gateway.contract import Call
from agentrl.inference.contract import Grammar
from agentrl.rollout.contract import Episode, EpisodeKey, Group
from agentrl.tokens.contract import ROOT, Position, Sampled, TokenTree


@dataclass
class Recorder:
    """Records calls one by one: given tokens after an earlier call's end, then a completion."""

    random: random.Random
    vocabulary: int
    tree: TokenTree = field(default_factory=TokenTree)
    calls: list[Call] = field(default_factory=list)
    ends: dict[str | None, Position] = field(default_factory=lambda: {None: ROOT})

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(self.vocabulary) for _ in range(count)]

    def call(
        self,
        given: Sequence[int],
        sampled: Sequence[int] | int,
        *,
        after: str | None = None,
        temperature: float = 1.0,
        constrained: bool = False,
        version: int | Sequence[int] = 0,
        grammar: Grammar | None = None,
        stop_ids: tuple[int, ...] = (),
    ) -> str:
        """Record one call, by default continuing nothing; returns its response id."""
        name = f"call-{len(self.calls)}"
        at = self.tree.add_given(given, self.ends[after])
        ids = self.ids(sampled) if isinstance(sampled, int) else list(sampled)
        logprobs = tuple(self.random.uniform(-4.2, -3.6) for _ in ids)
        versions = (version,) * len(ids) if isinstance(version, int) else tuple(version)
        made = Sampled(name, logprobs, versions, temperature, constrained, grammar, stop_ids)
        self.ends[name] = self.tree.add_sampled(ids, made, at)
        self.calls.append(Call(name, after, {}, {}, "stop", len(self.tree.path(at)), len(ids)))
        return name

    def episode(self, reward: float | dict[str, float] | None, sample: int = 0, task: int = 0) -> Episode:
        """What was recorded, ended with ``reward``, or rejected where that is ``None``."""
        by_call = reward if isinstance(reward, dict) else {}
        total = sum(reward.values()) if isinstance(reward, dict) else reward
        return Episode(
            key=EpisodeKey("train", 0, task, sample),
            data={},
            outcome="rejected" if total is None else "rewarded",
            reward=total,
            call_rewards=by_call,
            calls=tuple(self.calls),
            tree=self.tree,
        )


def chain(recorder: Recorder, prompt: Sequence[int], turns: int, *, longest: int = 7) -> Recorder:
    """A conversation of ``turns`` calls, each continuing the one before."""
    last, given = None, prompt
    for _ in range(turns):
        last = recorder.call(given, recorder.random.randint(1, longest), after=last)
        given = recorder.ids(recorder.random.randint(1, 4))
    return recorder


def wander(recorder: Recorder, prompt: Sequence[int], calls: int, *, newest: int = 0) -> Recorder:
    """Calls that start, continue or branch off conversations at random, at several temperatures and versions."""
    temperatures = recorder.random.sample([0.7, 1.0, 1.3], k=2)
    for _ in range(calls):
        after = recorder.random.choice([None, *(call.id for call in recorder.calls)])
        given = list(prompt) if after is None else []
        given += recorder.ids(recorder.random.randint(0 if given else 1, 5))
        count, temperature = recorder.random.randint(1, 6), recorder.random.choice(temperatures)
        versions = sorted(recorder.random.randint(0, newest) for _ in range(count)) if newest else [0] * count
        recorder.call(given, count, after=after, temperature=temperature, version=versions)
    return recorder


def groups_of_one_turn(
    random: random.Random, vocabulary: int, *, groups: int, size: int, prompt: int, longest: int, shortest: int = 1
) -> list[Group]:
    """Groups that share a prompt, with a completion an episode and rewards of 0 and 1."""
    made: list[Group] = []
    for task in range(groups):
        shared = Recorder(random, vocabulary).ids(prompt)
        episodes = []
        for sample in range(size):
            recorder = Recorder(random, vocabulary)
            recorder.call(shared, random.randint(shortest, longest))
            episodes.append(recorder.episode(float((sample + task) % 3 == 0), sample, task))
        made.append(Group(task, tuple(episodes)))
    return made


def wandering_groups(
    random: random.Random, vocabulary: int, *, groups: int = 2, size: int = 3, calls: int = 5, newest: int = 0
) -> list[Group]:
    """Groups of episodes that branch at random; some are rewarded call by call, one in six is rejected.

    Their tokens are of versions up to ``newest``.
    """
    made: list[Group] = []
    for task in range(groups):
        shared = Recorder(random, vocabulary).ids(random.randint(1, 8))
        episodes = []
        for sample in range(size):
            recorder = wander(Recorder(random, vocabulary), shared, random.randint(1, calls), newest=newest)
            reward: float | dict[str, float] | None = random.random()
            if random.random() < 0.3:
                reward = {call.id: random.random() for call in recorder.calls if random.random() < 0.5}
            if not reward or random.random() < 1 / 6:
                reward = None
            episodes.append(recorder.episode(reward, sample, task))
        made.append(Group(task, tuple(episodes)))
    return made
