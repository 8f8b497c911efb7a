"""Whether a server's logprobs are those of the learner: tokens that it samples, and a text, are scored by both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from agentrl import finish_in_thread
from agentrl.errors import BackendError
from agentrl.inference.contract import Weights
from agentrl_vllm.cause import Evidence, likely_cause
from agentrl_vllm.client import Client
from agentrl_vllm.engine import Description
from agentrl_vllm.errors import ServerFailed
from agentrl_vllm.generation import PATH
from agentrl_vllm.movement import Movement, Scores, movement
from agentrl_vllm.replica import Replica

__all__ = ["Probe"]

_PROMPT = 160
"""Tokens of the probe's prompt: more than a block of any prefix cache, so that one which is not cleared shows."""
_TOKENS = 32
_STRIDE = 7919
"""A prime: ids from all over the vocabulary."""
_ANSWER_S = 300.0
"""How long tokens may take after an update, from a server whose queue is full."""


@dataclass(slots=True)
class _Known:
    """A server as it was when it was last looked at."""

    life: int
    """Of its replica."""
    description: Description
    prompt: list[int]
    server: list[float]
    """What it said of the prompt."""
    learner: Sequence[float] | None = None
    """What the learner said of that then, if it was asked."""
    compared: int = 0
    is_told: bool = False
    """Whether it was said that it has not followed."""

    def movement_to(self, now: Scores) -> Movement | None:
        """How both have moved since, if both are known."""
        return None if self.learner is None else movement(Scores(self.server, self.learner), now)


class Probe:
    """Compares each server after its ``first`` updates, and after every ``every``-th of all where that is not 0."""

    def __init__(self, client: Client, first: int, every: int, say: Callable[[str], None]) -> None:
        self._client = client
        self._say = say
        self._first = first
        self._every = every
        self._updates = 0
        self._known: dict[Replica, _Known] = {}

    async def before_updates(self, replica: Replica, description: Description) -> None:
        """Have a server compute the prompt, so that what it keeps of it is there when the weights change."""
        if self._first or self._every:
            prompt = _prompt(description)
            await self._sample(replica.url, prompt)
            scored = await self._score(replica.url, prompt)
            self._known[replica] = _Known(replica.life, description, prompt, scored)

    async def after_update(self, weights: Weights, replicas: Sequence[Replica]) -> None:
        """Raises ``BackendError``, with the likely cause, where a server's logprobs are not those of ``weights``."""
        self._updates += 1
        looks = (self._look(weights, replica, known) for replica in replicas if (known := self._due(replica)))
        outcomes = await asyncio.gather(*looks, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def _due(self, replica: Replica) -> _Known | None:
        """What is known of a server that is to be looked at now."""
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
        url, prompt = replica.url, known.prompt
        ids, stated = await replica.while_ready(self._sample(url, prompt, _ANSWER_S))
        server = await replica.while_ready(self._score(url, prompt, _ANSWER_S))
        whole = [*prompt, *ids]
        expected = await finish_in_thread(weights.logprobs, whole)
        learner, sampled = expected[: len(server)], _differences(stated, expected[-len(ids) :])
        evidence = Evidence(
            dtype=known.description.dtype,
            tied=known.description.tied,
            sampled=fmean(sampled),
            scored=fmean(_differences(server, learner)),
            moved=fmean(_differences(server, known.server)),
            movement=known.movement_to(Scores(server, learner)),
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

    async def _sample(self, url: str, prompt: list[int], seconds: float | None = None) -> tuple[list[int], list[float]]:
        answer = await self._ask(url, prompt, seconds, max_tokens=_TOKENS)
        choice = answer["choices"][0]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]

    async def _score(self, url: str, ids: list[int], seconds: float | None = None) -> list[float]:
        """The server's logprobs of ``ids[1:]``, for which it takes nothing from its prefix cache."""
        answer = await self._ask(url, ids, seconds, max_tokens=1, prompt_logprobs=0)
        scored = answer["prompt_logprobs"][1:]
        return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], scored, strict=True)]

    async def _ask(self, url: str, ids: list[int], seconds: float | None, **params: object) -> Any:
        sampling = {"temperature": 1.0, "seed": 0, "logprobs": 0, "ignore_eos": True, "detokenize": False, **params}
        return await self._client.post(url, PATH, {"token_ids": ids, "sampling_params": sampling}, seconds=seconds)


def _mismatch(version: int, name: str, evidence: Evidence, most: float) -> BackendError:
    cause, fix = likely_cause(evidence)
    if evidence.is_off or evidence.movement is None:
        what = (
            f"the logprobs of {name} differ from the learner's by {evidence.sampled:.2g} in the mean and {most:.2g} "
            "at most"
        )
    else:
        what = (
            f"the learner's logprobs of a text have moved by {evidence.movement.learner:.2g} in the mean, and those "
            f"of {name} by {evidence.movement.server:.2g}, not as they did"
        )
    return BackendError(f"after the update to version {version} {what}: {cause}", fix=fix)


def _prompt(description: Description) -> list[int]:
    length = min(_PROMPT, description.context - _TOKENS - 1)
    return [number * _STRIDE % description.vocabulary for number in range(1, length + 1)]


def _differences(stated: Sequence[float], expected: Sequence[float]) -> list[float]:
    return [abs(one - other) for one, other in zip(stated, expected, strict=True)]
