"""Whether a server computes with the learner's weights: tokens that it samples, and a fixed text, are scored by both.

All scores are natural log-probabilities, in nats.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from agentrl import BackendError, finish_in_thread
from agentrl.inference.contract import Weights
from agentrl_vllm.client import Client, ServerFailed
from agentrl_vllm.control import Description
from agentrl_vllm.generation import PATH, PLAIN, score
from agentrl_vllm.replica import Replica

__all__ = ["TOLERANCES", "Evidence", "Probe", "ScoreChange", "Scores", "likely_explanation", "score_change"]

_MOVED = 1e-5
_UNMOVED = 1e-6
"""A mean change above ``_MOVED`` nats counts as one, and a change up to ``_UNMOVED`` nats as none."""
_HALF = 0.5
"""Below this share of the learner's change a server has not followed. With all new weights the share is about 1."""
_SURE = 4.0
_NOISE = 4.0
"""A change of this many times the rounding cannot be hidden by it."""


class Scores(NamedTuple):
    """The logprobs that the server and the learner give one text, one entry per token."""

    server: Sequence[float]
    learner: Sequence[float]


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """How the logprobs of one text have changed between two updates: means over its tokens, in nats."""

    learner: float
    server: float
    unlike: float
    """The mean distance between the server's change and the learner's."""
    noise: float
    """The mean distance between server and learner before the change: the size of rounding."""
    share: float
    """The share of the learner's change that the server has made: the slope of a line through 0."""
    lack: float
    """By how many standard errors that share is below 1.

    If the server had all of the change, the remaining difference would be rounding, positive as often as negative. The
    sum of its products with the learner's change, over the root of the sum of their squares, is then seldom more than a
    few, however large the rounding of a token is.
    """

    @property
    def is_missing(self) -> bool:
        """Whether the learner's scores have changed and the server's have not."""
        return self.learner > _MOVED and self.server <= _UNMOVED

    @property
    def is_partial(self) -> bool:
        """Whether the server has followed only in part, or not at all, by more than rounding explains."""
        is_short = self.share < _HALF and self.lack > _SURE
        return self.learner > _MOVED and (is_short or self.is_other)

    @property
    def is_other(self) -> bool:
        """Whether the server has changed in another way than the learner, by more than rounding can hide."""
        return self.learner > _NOISE * self.noise and self.unlike > _HALF * self.learner


def score_change(before: Scores, now: Scores) -> ScoreChange:
    """Returns how the scores of one text have changed from ``before`` to ``now``."""
    theirs, ours = _moves(before.server, now.server), _moves(before.learner, now.learner)
    along = sum(their * our for their, our in zip(theirs, ours, strict=True))
    power = sum(our * our for our in ours)
    lacks = [(our - their) * our for their, our in zip(theirs, ours, strict=True)]
    spread = math.sqrt(sum(lack * lack for lack in lacks))
    return ScoreChange(
        learner=fmean(map(abs, ours)),
        server=fmean(map(abs, theirs)),
        unlike=fmean(map(abs, _moves(theirs, ours))),
        noise=fmean(map(abs, _moves(*before))),
        share=along / power if power else 1.0,
        lack=sum(lacks) / spread if spread else 0.0,
    )


def _moves(before: Sequence[float], now: Sequence[float]) -> list[float]:
    return [new - old for old, new in zip(before, now, strict=True)]


TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}
"""The mean difference of logprobs, in nats, that computing in a type explains.

In float32 it is at most 1e-5 on one kind of device, and more between two kinds. In 16 bits a rare token's logprob may
be off by a tenth and more, and the mean over 32 tokens by some hundredths.
"""

_ROUNDING = 10.0
"""How many times the tolerance a difference may be and still be put down to rounding."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements after an update: mean differences of logprobs, in nats, and how those of a fixed text changed."""

    dtype: str
    tied: bool
    """Whether the model's head is tied to its embedding."""
    sampled: float
    """The difference from the learner for tokens that the server sampled after a prompt it may have cached."""
    scored: float
    """The difference from the learner for the prompt, which the server computed afresh."""
    moved: float
    """The difference of the server's scores of the prompt from its own at the last probe."""
    change: ScoreChange | None
    """The change of both since the last probe, where the learner was asked then too."""

    @property
    def is_off(self) -> bool:
        """Whether the server's logprobs differ from the learner's by more than its type explains."""
        return self.sampled > TOLERANCES[self.dtype]

    @property
    def is_behind(self) -> bool:
        """Whether the server's logprobs have not followed the learner's."""
        return self.change is not None and (self.change.is_missing or self.change.is_partial)

    @property
    def is_wrong(self) -> bool:
        """Whether the server certainly does not have the learner's weights.

        In 16 bits a server may be behind and still be right: weights of 16 bits do not change while the learner's steps
        are smaller than their last bit, for many steps.
        """
        moved, tolerance = self.change, TOLERANCES[self.dtype]
        if self.is_off or moved is None or self.dtype == "float32":
            return self.is_off or self.is_behind
        return moved.is_other and moved.learner > tolerance


def likely_explanation(evidence: Evidence) -> tuple[str, str]:
    """Returns the likely cause of a disagreement, and what to do about it."""
    tolerance, moved = TOLERANCES[evidence.dtype], evidence.change
    if evidence.is_off and evidence.scored <= tolerance and not evidence.is_behind:
        return "it goes on with a prefix cache that older weights computed", _report("clears its cache")
    if moved.is_missing if moved else evidence.moved <= _UNMOVED:
        return "it still computes with the older weights", _report("took the new weights")
    if evidence.scored <= _ROUNDING * tolerance and not evidence.is_behind:
        return f"{evidence.dtype} rounds too much for this model", "set inference.backend.dtype to float32"
    if evidence.tied:
        return (
            "the model's embeddings are tied, and its head may be the old one",
            _report("took the new weights at both ends"),
        )
    if evidence.is_behind:
        return "only a part of the new weights has reached it, or none", _report("took the new weights")
    return (
        "it runs another model than the learner, or changes it, as quantisation does",
        "serve what is trained; look for quantisation or overrides among inference.backend.args",
    )


def _report(what: str) -> str:
    return f"this vLLM confirmed that it {what}: use a version that agentrl-vllm is tested with"


_PROMPT = 160
"""Tokens of the probe's prompt: more than a block of any prefix cache, so that a cache that is not cleared shows."""
_TOKENS = 32
_STRIDE = 7919
"""A prime step between the prompt's ids, so that they come from all over the vocabulary."""
_ANSWER_S = 300.0
"""Seconds that tokens may take after an update, from a server whose queue is full."""


@dataclass(slots=True)
class _Known:
    """A server as it was at the last probe."""

    life: int
    """The replica's ``life`` at that time: another one means another server."""
    description: Description
    prompt: list[int]
    server: list[float]
    """The server's scores of the prompt."""
    learner: Sequence[float] | None = None
    """The learner's scores of the prompt at that time, if it was asked."""
    compared: int = 0
    is_told: bool = False
    """Whether it has been reported that the server has not followed."""

    def change_to(self, now: Scores) -> ScoreChange | None:
        """Returns how both have changed since the last probe; ``None`` where the learner was not asked then."""
        return None if self.learner is None else score_change(Scores(self.server, self.learner), now)


class Probe:
    """Compares each server with the learner after its first ``first`` updates, and after every ``every``-th update.

    Where ``every`` is 0 only the first updates are probed. ``salt`` is ``WeightSync.salt``: a probe finds in a server's
    prefix cache what requests find. ``say`` is called with what a user should know.
    """

    def __init__(
        self, client: Client, first: int, every: int, salt: Callable[[Replica], str], say: Callable[[str], None]
    ) -> None:
        self._client = client
        self._salt = salt
        self._say = say
        self._first = first
        self._every = every
        self._updates = 0
        self._known: dict[Replica, _Known] = {}

    async def before_updates(self, replica: Replica, description: Description) -> None:
        """Have a server compute the probe's prompt, so that its prefix cache holds it when the weights change."""
        if self._first or self._every:
            prompt = _prompt(description)
            await self._sample(replica, prompt)
            scored = await self._score(replica, prompt)
            self._known[replica] = _Known(replica.life, description, prompt, scored)

    async def after_update(self, weights: Weights, replicas: Sequence[Replica]) -> None:
        """Compare the servers that are due. Raises ``BackendError``, with the likely cause, where one disagrees."""
        self._updates += 1
        looks = (self._look(weights, replica, known) for replica in replicas if (known := self._due(replica)))
        outcomes = await asyncio.gather(*looks, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _due(self, replica: Replica) -> _Known | None:
        """The last probe of a server that is due now, else ``None``."""
        known = self._known.get(replica)
        if known is None or known.life != replica.life:
            return None
        is_due = known.compared < self._first or (self._every and self._updates % self._every == 0)
        return known if is_due else None

    async def _look(self, weights: Weights, replica: Replica, known: _Known) -> None:
        try:
            await self._compare(weights, replica, known)
        except ServerFailed as error:
            replica.fail(f"it did not answer a probe of its weights: {error.message}", life=known.life)

    async def _compare(self, weights: Weights, replica: Replica, known: _Known) -> None:
        prompt = known.prompt
        ids, stated = await replica.while_ready(self._sample(replica, prompt, _ANSWER_S))
        server = await replica.while_ready(self._score(replica, prompt, _ANSWER_S))
        whole = [*prompt, *ids]
        expected = await finish_in_thread(weights.logprobs, whole)
        learner, sampled = expected[: len(server)], _differences(stated, expected[-len(ids) :])
        evidence = Evidence(
            dtype=known.description.dtype,
            tied=known.description.tied,
            sampled=fmean(sampled),
            scored=fmean(_differences(server, learner)),
            moved=fmean(_differences(server, known.server)),
            change=known.change_to(Scores(server, learner)),
        )
        if evidence.is_wrong:
            raise _mismatch(weights.version, replica.server.name, evidence, max(sampled))
        if evidence.is_behind:  # From the same beginning again, until it has followed or is wrong for certain.
            self._tell(replica.server.name, known)
            return
        known.server, known.learner, known.compared = server, learner, known.compared + 1

    def _tell(self, name: str, known: _Known) -> None:
        if not known.is_told:
            known.is_told = True
            dtype = known.description.dtype
            self._say(
                f"the logprobs of {name} have not followed the learner's yet: either the steps are smaller than "
                f"{dtype} resolves, or not all weights arrive; compared after each update until they have"
            )

    async def _sample(
        self, replica: Replica, prompt: list[int], seconds: float | None = None
    ) -> tuple[list[int], list[float]]:
        params = {**PLAIN, "max_tokens": _TOKENS}
        body = {"token_ids": prompt, "sampling_params": params, "cache_salt": self._salt(replica)}
        choice = (await self._client.post(replica.url, PATH, body, seconds=seconds))["choices"][0]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]

    async def _score(self, replica: Replica, ids: list[int], seconds: float | None = None) -> list[float]:
        return await score(self._client, replica.url, ids, self._salt(replica), seconds=seconds)


def _mismatch(version: int, name: str, evidence: Evidence, most: float) -> BackendError:
    explanation, fix = likely_explanation(evidence)
    if evidence.is_off or evidence.change is None:
        what = (
            f"the logprobs of {name} differ from the learner's by {evidence.sampled:.2g} in the mean and {most:.2g} "
            "at most"
        )
    else:
        what = (
            f"the learner's logprobs of a text have moved by {evidence.change.learner:.2g} in the mean, and those "
            f"of {name} by {evidence.change.server:.2g}, not as they did"
        )
    return BackendError(f"after the update to version {version} {what}: {explanation}", fix=fix)


def _prompt(description: Description) -> list[int]:
    length = min(_PROMPT, description.context - _TOKENS - 1)
    return [number * _STRIDE % description.vocabulary for number in range(1, length + 1)]


def _differences(stated: Sequence[float], expected: Sequence[float]) -> list[float]:
    return [abs(one - other) for one, other in zip(stated, expected, strict=True)]
