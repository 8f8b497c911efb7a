"""Control of a server: what it has loaded and can do, and the calls that replace its weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from agentrl import BackendError, PluginError
from agentrl.inference.contract import Capabilities, HeldWeights, TensorDigest
from agentrl_vllm.client import Client, ServerFailed, refusal
from agentrl_vllm.generation import PATH, TEMPERATURES

__all__ = [
    "LOAD_S",
    "Description",
    "Facts",
    "Refused",
    "UnderWay",
    "Unlike",
    "adapters",
    "capabilities_of",
    "check",
    "compare",
    "describe",
    "describe_usable",
    "fits",
    "forget",
    "held",
    "held_tensors",
    "load_adapter",
    "pause",
    "read_facts",
    "release",
    "replace",
    "resume",
    "stamp",
    "unload_adapter",
]

_EXTENSION = "agentrl_vllm.extension.WorkerExtension"
_DESCRIBE = "agentrl_describe"
_DIGESTS = "agentrl_digests"
_ANSWER_S = 60.0
"""Seconds for an answer that waits for at most one step of the engine."""
LOAD_S = 300.0
"""Seconds for loading new weights; with the rest of an update this stays below `inference.timeout`."""
_UNKNOWN = "default"
"""The weight version of a server that was given none."""


class Refused(BackendError):
    """A server cannot take a folder of weights, and has kept its own."""


class Unlike(BackendError):
    """A server's tensors are not those in the folder that it has loaded."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a server has loaded, and how it computes, as its workers report it: ``/server_info`` takes seconds."""

    folder: str
    """The model folder, or the name on the hub, that the weights were loaded from."""
    dtype: str
    tied: bool
    """Whether the model's head is tied to its embedding."""
    vocabulary: int
    context: int
    """The most tokens of a prompt and its completion together."""
    sequences: int
    """How many completions it samples at once."""
    chunks: bool
    """Whether it computes long prompts in chunks."""
    device: str
    """``cpu`` or ``cuda``."""
    logprobs_mode: str
    max_logprobs: int
    """The most logprobs per token that a request may ask for; -1 for the whole vocabulary."""
    text: bool
    """Whether it has a tokenizer; stop strings need one."""
    workers: int = 1
    """How many processes hold its model."""


async def describe(client: Client, url: str) -> Description:
    """Returns the description of a server.

    Raises ``BackendError`` where it lacks this package's worker extension, and ``PluginError`` where it has another
    version of it.
    """
    try:
        answers = await _call(client, url, _DESCRIBE)
    except ServerFailed as error:
        if _DESCRIBE not in error.message:
            raise
        raise BackendError(  # The worker has no such method.
            f"the server at {url} cannot be told its weights: {error.message}",
            fix=f"install agentrl-vllm beside it and start it with --worker-extension-cls {_EXTENSION}",
        ) from error
    if faults := [answer["fault"] for answer in answers if answer.get("fault") is not None]:
        raise BackendError(
            f"the server at {url} does not tell what it has loaded: {faults[0]}",
            fix="use a version of vLLM that agentrl-vllm is tested with",
        )
    first = answers[0]
    told = [name for name in Description.__slots__ if name != "workers"]
    if missing := [name for name in told if name not in first]:
        raise PluginError(
            f"the server at {url} has another version of agentrl-vllm, which does not tell {', '.join(missing)}",
            fix="install the same version there as here",
        )
    return Description(**{name: first[name] for name in told}, workers=len(answers))


async def check(client: Client, url: str, folder: Path) -> None:
    """Have all workers check new weights. Raises ``Refused`` where they are broken or do not fit the model."""
    for answer in await _call(client, url, "agentrl_check", str(folder)):
        if (fault := answer["fault"]) is not None:
            is_hidden = "no folder that this server can see" in fault
            raise Refused(
                f"the new weights do not fit the model of the server at {url}: {fault}",
                fix="set inference.backend.weights_dir to a folder that it sees under the same path"
                if is_hidden
                else "train and sample the same model; the server keeps its old weights",
            )


async def fits(client: Client, url: str, names: Sequence[str]) -> None:
    """Have all workers check that tensors of these ``names`` are their model's. Raises ``Refused`` where not."""
    for answer in await _call(client, url, "agentrl_fits", json.dumps(list(names))):
        if (fault := answer["fault"]) is not None:
            raise Refused(
                f"the new weights do not fit the model of the server at {url}: {fault}",
                fix="train and sample the same model; the server keeps its old weights",
            )


UnderWay = Literal["keep", "recompute", "abort"]
"""What becomes of requests under way when weights change: they wait, keep their tokens, and go on with the keys and
values that they have (``keep``), or with ones that the new weights compute of their text (``recompute``); or they end
(``abort``)."""


async def pause(client: Client, url: str, under_way: UnderWay) -> None:
    """Pause a server between two steps. New requests wait."""
    if under_way == "abort":
        await client.post(url, "/pause?mode=abort", seconds=_ANSWER_S)
    else:
        # To clear the cache is to take their keys and values from those under way.
        await client.post(url, "/pause?mode=keep&clear_cache=false", seconds=_ANSWER_S)


async def replace(client: Client, url: str, folder: Path) -> None:
    """Load the weights in ``folder`` into a paused server, in place.

    Raises ``BackendError`` where that fails: the server must not be resumed then, and its workers end.
    """
    for answer in await _call(client, url, "agentrl_load", str(folder), seconds=LOAD_S):
        if answer["fault"] is not None:
            raise BackendError(f"the server at {url} failed to load new weights: {answer['fault']}")


async def forget(client: Client, url: str) -> None:
    """Empty a paused server's prefix cache; what it had computed of the text of requests under way goes with it.

    Raises ``BackendError`` where the server does not confirm.
    """
    answer = await client.post(url, "/reset_prefix_cache?reset_running_requests=true", seconds=_ANSWER_S)
    if not answer["success"]:
        raise BackendError(f"the server at {url} still holds what older weights computed")


async def stamp(client: Client, url: str, version: int) -> None:
    """Have a paused server label its tokens with ``version`` from now on.

    Raises ``BackendError`` where it does not confirm.
    """
    await _label(client, url, str(version))
    confirmed = (await client.get(url, "/weight_info", seconds=_ANSWER_S))["weight_version"]
    if confirmed != str(version):
        raise BackendError(f"the server at {url} says that it has weights {confirmed}, and should have {version}")


async def adapters(client: Client, url: str) -> set[int]:
    """Returns the numbers of the adapters that all workers of a server have."""
    answers = await _call(client, url, "agentrl_adapters")
    if faults := [answer["fault"] for answer in answers if answer["fault"] is not None]:
        raise Refused(
            f"the server at {url} takes no adapters: {faults[0]}",
            fix="start it with --enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
        )
    return set.intersection(*(set(answer["numbers"]) for answer in answers))


async def load_adapter(client: Client, url: str, name: str, folder: Path | str) -> None:
    """Have a server load the adapter in ``folder`` as ``name``, which it has never had.

    Raises ``Refused`` where it does not take it; it goes on with what it has.
    """
    body = {"lora_name": name, "lora_path": str(folder)}
    reply = await client.reply(url, "/v1/load_lora_adapter", body)
    if reply.status != HTTPStatus.OK:
        told = refusal(url, "/v1/load_lora_adapter", reply.status, reply.content).message
        is_closed = reply.status == HTTPStatus.NOT_FOUND and "lora adapter" not in told.lower()
        raise Refused(
            f"{told}: it does not take the adapter in {folder}",
            fix="start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            if is_closed
            else "adapt layers that this vLLM adapts, with training.lora.targets; the server keeps its old weights",
        )


async def unload_adapter(client: Client, url: str, name: str) -> None:
    """Have a server forget the adapter ``name``, which no request may ask for any more."""
    await client.post(url, "/v1/unload_lora_adapter", {"lora_name": name}, seconds=_ANSWER_S)


async def held(client: Client, url: str, adapter: int | None = None) -> HeldWeights:
    """Returns the weights that a server holds, as its workers read them from their memory.

    With ``adapter``, the number of one, they are those of the base and of that adapter, apart.
    """
    version = (await client.get(url, "/weight_info", seconds=_ANSWER_S))["weight_version"]
    if not str(version).isdecimal():
        raise BackendError(
            f"the server at {url} says that it has weights {version}, which are no version of this run",
            fix="nobody else may change its weights",
        )
    of = () if adapter is None else (str(adapter),)
    answers, inability = await _told_of_tensors(client, url, _DIGESTS, *of)
    if inability:
        return HeldWeights(int(version), None, inability, apart=adapter is not None)
    return HeldWeights(int(version), _digests(answers), apart=adapter is not None)


async def held_tensors(client: Client, url: str) -> HeldWeights:
    """As ``held``, of a server that has not been told yet which version its weights are; it is given as 0."""
    answers, inability = await _told_of_tensors(client, url, _DIGESTS)
    return HeldWeights(0, None if inability else _digests(answers), inability)


def _digests(answers: Sequence[dict[str, Any]]) -> dict[str, TensorDigest]:
    return {
        name: TensorDigest(dtype, tuple(shape), digest)
        for answer in answers
        for name, (dtype, shape, digest) in answer["tensors"].items()
    }


async def compare(client: Client, url: str, folder: Path) -> str:
    """Have all workers hold their tensors against those in ``folder``.

    Returns an empty text, or why that cannot be done, as a part of a sentence. Raises ``Unlike`` where a tensor is
    another.
    """
    answers, inability = await _told_of_tensors(client, url, "agentrl_compare", str(folder))
    if inability:
        return inability
    if unlike := sorted({name for answer in answers for name in answer["unlike"]}):
        raise Unlike(
            f"the server at {url} has loaded {folder}, and {_some(unlike)} in its memory is not what is there",
            fix="use a version of vLLM that agentrl-vllm is tested with",
        )
    return ""


async def _told_of_tensors(client: Client, url: str, method: str, *args: str) -> tuple[list[dict[str, Any]], str]:
    """The answers of all workers that read their memory; and why they cannot, as a part of a sentence."""
    try:
        answers = await _call(client, url, method, *args, seconds=LOAD_S)
    except ServerFailed as error:
        if method not in error.message:
            raise
        return [], f"the server at {url} has an older version of agentrl-vllm beside it"
    for answer in answers:
        if answer["fault"] is not None:
            raise BackendError(f"the server at {url} cannot read its own weights: {answer['fault']}")
        if "inability" in answer:
            return [], f"of the server at {url}, {answer['inability']}"
    # Each worker may have some of the layers.
    absent = set.intersection(*(set(answer["absent"]) for answer in answers))
    return answers, f"the server at {url} holds {_some(sorted(absent))} in a form that is not known" if absent else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


async def resume(client: Client, url: str) -> None:
    """Let a paused server go on."""
    await client.post(url, "/resume", seconds=_ANSWER_S)


async def release(client: Client, url: str) -> None:
    """Let a server go on whose weights are not known: its requests are ended, and it has no weight version."""
    await pause(client, url, "abort")
    await _label(client, url, _UNKNOWN)
    await resume(client, url)


async def _label(client: Client, url: str, version: str) -> None:
    await client.post(url, "/update_weight_version", {"new_version": version}, seconds=_ANSWER_S)


async def _call(client: Client, url: str, method: str, *args: str, seconds: float = _ANSWER_S) -> list[dict[str, Any]]:
    """Returns the answers of all workers of a server to a method of ``WorkerExtension``."""
    answer = await client.post(url, "/collective_rpc", {"method": method, "args": args}, seconds=seconds)
    results: list[dict[str, Any]] = answer["results"]
    return results


_ALWAYS = frozenset({"temperature", "seed"})
_SOMETIMES = frozenset({"stop", "top_logprobs", "top_p", "top_k", "grammar", "logit_bias"})
_MOST_LOGPROBS = 21
"""The most alternatives that clients may ask for, and the sampled token."""
_PROBES = 4
_BIASED = 7
"""The id that a probe of biases forces."""
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Facts:
    """What one server can do, and which vLLM it is."""

    context_length: int
    sequences: int
    """How many completions it samples at once."""
    sampling: frozenset[str]
    """The fields of ``Sampling`` that it honours."""
    kind: str = "a vLLM"
    """Its version, device and type, as the beginning of a sentence."""

    def __str__(self) -> str:
        least, most = TEMPERATURES
        can = [f"temperature {least:g} to {most:g}", *sorted(self.sampling - {"temperature"})]
        lack = sorted(_SOMETIMES - self.sampling)
        cannot = f"; not {', '.join(lack)}" if lack else ""
        room = f"context {self.context_length}, {self.sequences} sequences at once"
        return f"{self.kind}: {room}; samples {', '.join(can)}{cannot}"


def capabilities_of(servers: Sequence[Facts]) -> Capabilities:
    """Returns what all of ``servers``, at least one, can do together."""
    return Capabilities(
        context_length=min(server.context_length for server in servers),
        max_concurrency=sum(server.sequences for server in servers),
        sampling=frozenset.intersection(*(server.sampling for server in servers)),
        temperatures=TEMPERATURES,
        # They are of the tokens that vLLM allows, which are not those that the learner would compute: it compiles
        # grammars with options of its own, and takes control tokens for text.
        masked_logprobs=False,
        keeps_adapters=True,
    )


async def describe_usable(client: Client, url: str) -> Description:
    """Returns the description of a server. Raises ``BackendError`` for one whose tokens cannot be trained on."""
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
    """Returns what the server at ``url`` can do, from its description ``told`` and a few tokens that it samples.

    ``patience`` is how many seconds it may be silent: its first tokens wait for what it compiles.
    """
    sampling = _ALWAYS | {"stop"} if told.text else _ALWAYS
    if told.max_logprobs == -1 or told.max_logprobs >= _MOST_LOGPROBS:
        sampling |= {"top_logprobs"}
    if await _reports_unrestricted(client, url, patience):
        sampling |= {"top_p", "top_k"}
    if told.text and await _keeps_to_grammars(client, url, patience):
        sampling |= {"grammar"}
    if await _reports_biased(client, url, patience):
        sampling |= {"logit_bias"}
    version = (await client.get(url, "/version"))["version"]
    return Facts(told.context, told.sequences, sampling, f"vLLM {version} on {told.device} in {told.dtype}")


async def _reports_unrestricted(client: Client, url: str, patience: float) -> bool:
    """Whether logprobs are those before ``top_p`` and ``top_k``: after a cut to one token they would be 0."""
    return any(logprob < 0 for _, logprob in await _probed(client, url, patience, {"top_k": 1}))


async def _keeps_to_grammars(client: Client, url: str, patience: float) -> bool:
    """Whether it samples under grammars. One that cannot refuses them."""
    try:
        await _probed(client, url, patience, {"structured_outputs": {"regex": "0"}})
    except ServerFailed:
        raise
    except BackendError:
        return False
    return True


async def _reports_biased(client: Client, url: str, patience: float) -> bool:
    """Whether logprobs are those after biases: a bias that leaves no choice makes them 0."""
    drawn = await _probed(client, url, patience, {"logit_bias": {str(_BIASED): 100.0}})
    return all(token == _BIASED and logprob > -_ROUNDING for token, logprob in drawn)


async def _probed(client: Client, url: str, patience: float, fields: dict[str, Any]) -> list[tuple[int, float]]:
    """The id and the logprob of a token that is sampled with ``fields``, after each of a few prompts."""
    params = {"temperature": 2.0, "seed": 0, "max_tokens": 1, "logprobs": 0, "ignore_eos": True, **fields}
    bodies = [{"token_ids": [token], "sampling_params": params} for token in range(_PROBES)]
    answers = await asyncio.gather(*(client.post(url, PATH, body, seconds=patience) for body in bodies))
    choices = [answer["choices"][0] for answer in answers]
    return [(choice["token_ids"][0], choice["logprobs"]["content"][0]["logprob"]) for choice in choices]
