"""What the servers can do: asked of each when it has started, and tried where no question tells."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.errors import BackendError
from agentrl.inference.contract import Capabilities
from agentrl_vllm.client import Client
from agentrl_vllm.engine import Description, describe
from agentrl_vllm.generation import PATH
from agentrl_vllm.sampling import TEMPERATURES

__all__ = ["Facts", "capabilities_of", "describe_usable", "read_facts"]

_ALWAYS = frozenset({"temperature", "seed"})
_SOMETIMES = frozenset({"stop", "top_logprobs", "top_p", "top_k"})
_MOST_LOGPROBS = 21
"""As many alternatives as clients may ask for, and the sampled token."""
_PROBES = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What one server can do."""

    context_length: int
    sequences: int
    """How many completions it samples at once."""
    sampling: frozenset[str]
    """Fields of ``Sampling`` that it honours."""
    kind: str = "a vLLM"
    """Which vLLM it is, and how it computes."""

    def __str__(self) -> str:
        least, most = TEMPERATURES
        can = [f"temperature {least:g} to {most:g}", *sorted(self.sampling - {"temperature"})]
        lack = sorted(_SOMETIMES - self.sampling)
        cannot = f"; not {', '.join(lack)}" if lack else ""
        room = f"context {self.context_length}, {self.sequences} sequences at once"
        return f"{self.kind}: {room}; samples {', '.join(can)}{cannot}"


def capabilities_of(servers: Sequence[Facts]) -> Capabilities:
    """What all of ``servers``, at least one, can do together."""
    return Capabilities(
        context_length=min(server.context_length for server in servers),
        max_concurrency=sum(server.sequences for server in servers),
        sampling=frozenset.intersection(*(server.sampling for server in servers)),
        temperatures=TEMPERATURES,
    )


async def describe_usable(client: Client, url: str) -> Description:
    """Ask the server at ``url`` what it is. Raises ``BackendError`` for one whose tokens cannot be trained on."""
    told = await describe(client, url)
    if told.logprobs_mode != "processed_logprobs":
        raise BackendError(
            f"the server at {url} reports logprobs of another distribution than it samples from: {told.logprobs_mode}",
            fix="start it with --logprobs-mode processed_logprobs",
        )
    if told.device == "cpu" and told.chunks:
        raise BackendError(
            f"the server at {url} would end at the first prompt that it cuts in chunks: on a CPU it cannot with seeds",
            fix="start it with --no-enable-chunked-prefill",
        )
    return told


async def read_facts(client: Client, url: str, told: Description, patience: float) -> Facts:
    """Try the server at ``url`` out, which has told this of itself.

    ``patience`` is for how many seconds it may be silent: its first tokens wait for what it compiles.
    """
    sampling = _ALWAYS | {"stop"} if told.text else _ALWAYS
    if told.max_logprobs == -1 or told.max_logprobs >= _MOST_LOGPROBS:
        sampling |= {"top_logprobs"}
    if await _reports_uncut(client, url, patience):
        sampling |= {"top_p", "top_k"}
    version = (await client.get(url, "/version"))["version"]
    return Facts(told.context, told.sequences, sampling, f"vLLM {version} on {told.device} in {told.dtype}")


async def _reports_uncut(client: Client, url: str, patience: float) -> bool:
    """Whether logprobs are of the distribution before ``top_p`` and ``top_k`` cut it: of one token alone, it is 0."""
    params = {"temperature": 2.0, "top_k": 1, "seed": 0, "max_tokens": 1, "logprobs": 0, "ignore_eos": True}
    bodies = [{"token_ids": [token], "sampling_params": params} for token in range(_PROBES)]
    answers = await asyncio.gather(*(client.post(url, PATH, body, seconds=patience) for body in bodies))
    return any(answer["choices"][0]["logprobs"]["content"][0]["logprob"] < 0 for answer in answers)
