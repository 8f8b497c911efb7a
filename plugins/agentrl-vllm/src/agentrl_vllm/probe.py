"""Whether a server's logprobs are those of the learner: tokens that it samples are scored by both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from agentrl.errors import BackendError
from agentrl.inference.contract import Weights
from agentrl_vllm.cause import TOLERANCES, Evidence, likely_cause
from agentrl_vllm.client import Client
from agentrl_vllm.engine import Description
from agentrl_vllm.errors import ServerFailed
from agentrl_vllm.generation import PATH
from agentrl_vllm.replica import Replica

__all__ = ["Probe"]

_PROMPT = 160
"""Tokens of the probe's prompt: more than a block of any prefix cache, so that one which is not cleared shows."""
_TOKENS = 32
_STRIDE = 7919
"""A prime: ids from all over the vocabulary."""


@dataclass(frozen=True, slots=True)
class _Before:
    """A server as it was before an update."""

    description: Description
    prompt: list[int]
    scored: list[float]
    """What it said of the prompt."""


class Probe:
    """Compares after each of the ``first`` updates, and after every ``every``-th where that is not 0."""

    def __init__(self, client: Client, first: int, every: int) -> None:
        self._client = client
        self._first = first
        self._every = every
        self._updates = 0
        self._before: dict[str, _Before] = {}

    async def before_updates(self, url: str, description: Description) -> None:
        """Have a server compute the prompt, so that what it keeps of it is there when the weights change."""
        if self._first or self._every:
            prompt = _prompt(description)
            await self._sample(url, prompt)
            self._before[url] = _Before(description, prompt, await self._score(url, prompt))

    async def after_update(self, weights: Weights, replicas: Sequence[Replica]) -> None:
        """Raises ``BackendError``, with the likely cause, where a server's logprobs are not those of ``weights``."""
        self._updates += 1
        if self._updates <= self._first or (self._every and self._updates % self._every == 0):
            await asyncio.gather(*(self._compare(weights, replica) for replica in replicas))

    async def _compare(self, weights: Weights, replica: Replica) -> None:
        life, url, name = replica.life, replica.url, replica.server.name
        before = self._before[url]
        try:
            ids, stated = await self._sample(url, before.prompt)
            whole = [*before.prompt, *ids]
            expected = await asyncio.to_thread(weights.logprobs, whole)
            differences = _differences(stated, expected[-len(ids) :])
            if fmean(differences) <= TOLERANCES[before.description.dtype]:
                return
            scored = await self._score(url, whole)
        except ServerFailed as error:
            replica.fail(f"it did not answer a probe of its weights: {error.message}", life=life)
            return
        evidence = Evidence(
            dtype=before.description.dtype,
            tied=before.description.tied,
            sampled=fmean(differences),
            scored=fmean(_differences(scored, expected)),
            moved=fmean(_differences(scored[: len(before.scored)], before.scored)),
        )
        cause, fix = likely_cause(evidence)
        raise BackendError(
            f"after the update to version {weights.version} the logprobs of {name} differ from the learner's by "
            f"{evidence.sampled:.2g} in the mean and {max(differences):.2g} at most: {cause}",
            fix=fix,
        )

    async def _sample(self, url: str, prompt: list[int]) -> tuple[list[int], list[float]]:
        answer = await self._ask(url, prompt, max_tokens=_TOKENS)
        choice = answer["choices"][0]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]

    async def _score(self, url: str, ids: list[int]) -> list[float]:
        """The server's logprobs of ``ids[1:]``, for which it takes nothing from its prefix cache."""
        answer = await self._ask(url, ids, max_tokens=1, prompt_logprobs=0)
        scored = answer["prompt_logprobs"][1:]
        return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], scored, strict=True)]

    async def _ask(self, url: str, ids: list[int], **params: object) -> Any:
        sampling = {"temperature": 1.0, "seed": 0, "logprobs": 0, "ignore_eos": True, "detokenize": False, **params}
        return await self._client.post(url, PATH, {"token_ids": ids, "sampling_params": sampling})


def _prompt(description: Description) -> list[int]:
    length = min(_PROMPT, description.context - _TOKENS - 1)
    return [number * _STRIDE % description.vocabulary for number in range(1, length + 1)]


def _differences(stated: Sequence[float], expected: Sequence[float]) -> list[float]:
    return [abs(one - other) for one, other in zip(stated, expected, strict=True)]
