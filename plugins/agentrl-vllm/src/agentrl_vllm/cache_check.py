"""A check of the servers' prefix caches: none serves what older weights have computed to a request that is new.

Requests of each version's weights are kept under a name of their own (``WeightSync.use``), so that a cache need not be
emptied. Whether a server keeps to that is looked at after every update: a long prompt, longer than a block of any
cache, is completed as a request's would be, and the same tokens are scored anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean

from agentrl import BackendError
from agentrl_vllm.client import Client, ServerFailed
from agentrl_vllm.control import Description
from agentrl_vllm.generation import PATH, PLAIN, Use, score
from agentrl_vllm.replica import Replica

__all__ = ["TOLERANCES", "CacheCheck"]

TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.1}
"""How far logprobs of the same tokens may be apart in the mean, in nats, for rounding alone."""
_PROMPT = 160
"""Tokens of the prompt: more than a block of any prefix cache."""
_TOKENS = 4
_STRIDE = 7919
"""A prime step between the prompt's ids, so that they come from all over the vocabulary."""
_ANSWER_S = 300.0
"""Seconds that tokens may take after an update, from a server whose queue is full."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A server whose cache holds the prompt."""

    life: int
    """The replica's ``life`` at that time: another one means another server."""
    dtype: str
    prompt: list[int]


class CacheCheck:
    """The checks of a run's servers. ``use`` is ``WeightSync.use``."""

    def __init__(self, client: Client, use: Callable[[Replica], AbstractContextManager[Use]]) -> None:
        self._client = client
        self._use = use
        self._known: dict[Replica, _Known] = {}

    async def before_updates(self, replica: Replica, description: Description) -> None:
        """Have a server compute the prompt, so that its prefix cache holds it when the weights change."""
        length = min(_PROMPT, description.context - _TOKENS - 1)
        prompt = [number * _STRIDE % description.vocabulary for number in range(1, length + 1)]
        self._known[replica] = _Known(replica.life, description.dtype, prompt)
        await self._sample(replica, prompt)

    async def after_update(self, version: int, replicas: Sequence[Replica]) -> None:
        """Check every server that ``before_updates`` was called for; one that does not answer is taken out.

        Raises ``BackendError`` where a cache serves what older weights computed.
        """
        looks = (
            self._look(version, each, known)
            for each in replicas
            if (known := self._known.get(each)) is not None and known.life == each.life
        )
        for outcome in await asyncio.gather(*looks, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _look(self, version: int, replica: Replica, known: _Known) -> None:
        try:
            ids, stated = await replica.while_ready(self._sample(replica, known.prompt))
            whole = [*known.prompt, *ids]
            with self._use(replica) as use:
                scoring = score(self._client, replica.url, whole, use.fields, seconds=_ANSWER_S)
                anew = await replica.while_ready(scoring)
        except ServerFailed as error:
            replica.fail(f"it did not answer a check of its cache: {error.message}", life=known.life)
            return
        off = fmean(abs(one - other) for one, other in zip(stated, anew[-len(ids) :], strict=True))
        if off > TOLERANCES[known.dtype]:
            raise BackendError(
                f"after the update to version {version} the logprobs of {replica.server.name} differ by {off:.2g} in "
                "the mean from those that it computes anew of the same tokens: it goes on with a prefix cache that "
                "older weights computed (stale cache)",
                fix="use a version of vLLM that agentrl-vllm is tested with: this one does not heed cache_salt",
            )

    async def _sample(self, replica: Replica, prompt: list[int]) -> tuple[list[int], list[float]]:
        params = {**PLAIN, "max_tokens": _TOKENS}
        with self._use(replica) as use:
            body = {"token_ids": prompt, "sampling_params": params, **use.fields}
            choice = (await self._client.post(replica.url, PATH, body, seconds=_ANSWER_S))["choices"][0]
        return choice["token_ids"], [token["logprob"] for token in choice["logprobs"]["content"]]
