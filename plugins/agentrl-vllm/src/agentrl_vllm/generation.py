"""One completion by one server: from a request to vLLM's parameters, and from its answer to chunks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from agentrl import BackendError, UnsupportedSampling
from agentrl.inference.contract import Chunk, FinishReason, GenerationRequest, Grammar, Sampling
from agentrl_vllm.client import Client, ServerFailed

__all__ = [
    "PATH",
    "PLAIN",
    "TEMPERATURES",
    "Body",
    "Use",
    "complete",
    "request_body",
    "sampling_params",
    "score",
    "stream",
    "structured_outputs",
    "versions_of",
]

Body = dict[str, object]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Use:
    """The weights that a request is for."""

    fields: Body
    """Of its body: the adapter that it names, if one, and the name under which the prefix cache keeps it."""
    fixed: int | None = None
    """The version of all of its tokens, where it names an adapter; else weights may change while it is under way."""


TEMPERATURES = (0.01, 2.0)
"""The lowest temperature above 0 and the highest. vLLM refuses higher ones, and silently raises lower ones to it."""
_LEAST_TOP_P = 1e-9


def sampling_params(sampling: Sampling, room: int, honoured: frozenset[str]) -> Body:
    """Returns the fields of vLLM's ``SamplingParams``; ``room`` is how many tokens the context leaves.

    Every field that vLLM would otherwise take from the model's own defaults is set. Raises ``UnsupportedSampling`` for
    a value that vLLM refuses or silently changes, and for a field that is not among those ``honoured``.
    """
    _check(sampling, honoured)
    stops: Body = {"stop": list(sampling.stop), "skip_special_tokens": False} if sampling.stop else {}
    forms: Body = {} if sampling.grammar is None else {"structured_outputs": structured_outputs(sampling.grammar)}
    biases: Body = {"logit_bias": {str(token): bias for token, bias in sampling.logit_bias}}
    return {
        "temperature": sampling.temperature,
        # A nucleus of no mass is its likeliest token, which vLLM spells otherwise.
        "top_p": max(sampling.top_p, _LEAST_TOP_P),
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "max_tokens": room if sampling.max_tokens is None else min(sampling.max_tokens, room),
        "stop_token_ids": sorted(sampling.stop_ids),
        "ignore_eos": True,
        # It lists the sampled token first, whatever its rank, so that the last alternative needs one more.
        "logprobs": sampling.top_logprobs + 1 if sampling.top_logprobs else 0,
        # Nobody reads its text, which it needs for stop strings only.
        "detokenize": bool(sampling.stop),
        **stops,
        **forms,
        **(biases if sampling.logit_bias else {}),
    }


def structured_outputs(grammar: Grammar) -> Body:
    """Returns ``grammar`` as vLLM's ``StructuredOutputsParams``.

    vLLM compiles it with options of its own, such as how much white space JSON may hold, and ends a completion under it
    with the tokenizer's own end of a text. Raises ``UnsupportedSampling`` for a schema or a tag that is no JSON.
    """
    if grammar.kind == "json_object":
        return {"json_object": True}
    if grammar.kind == "regex":
        return {"regex": grammar.text}
    try:
        value = json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedSampling(f"the {grammar.kind} is no JSON: {error}", fix="mend it") from error
    return {"structural_tag": grammar.text} if grammar.kind == "structural_tag" else {"json": value}


_NEUTRAL: Mapping[str, object] = {
    "top_p": 1.0,
    "top_k": 0,
    "stop": (),
    "top_logprobs": 0,
    "grammar": None,
    "logit_bias": (),
}
"""The values of fields at which they ask nothing of a server."""


def _check(sampling: Sampling, honoured: frozenset[str]) -> None:
    temperature = sampling.temperature
    least, most = TEMPERATURES
    if temperature and not least <= temperature <= most:
        raise UnsupportedSampling(
            f"vLLM samples at temperature 0, and from {least:g} to {most:g}: not at {temperature:g}",
            fix="choose one of those",
        )
    for name, neutral in _NEUTRAL.items():
        if name not in honoured and getattr(sampling, name) != neutral:
            raise UnsupportedSampling(
                f"{name}={getattr(sampling, name)!r} is beyond these vLLM servers: they refuse it, or their logprobs "
                "would be others",
                fix="let agentrl start the servers",
            )


PATH = "/inference/v1/generate"

_NO_LOGPROB = -9999.0
"""The value that the endpoint gives for a logprob that is not a number."""

PLAIN: Body = {"temperature": 1.0, "seed": 0, "logprobs": 0, "ignore_eos": True, "detokenize": False}
"""The parameters of requests whose tokens are only looked at."""

_FINISHES: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def request_body(request: GenerationRequest, params: Body) -> Body:
    """Returns the JSON body of ``request``; ``params`` are its ``sampling_params``."""
    return {"token_ids": list(request.prompt_ids), "sampling_params": params, "stream": request.stream}


async def complete(client: Client, url: str, body: Body, top: int, fixed: int | None = None) -> Chunk:
    """Returns a completion, whole; ``top`` is how many alternatives per token it should hold.

    When its first token was sampled is not known: the server tells nothing before the last.

    ``fixed`` is the version of all of its tokens where that does not change on its way: it names an adapter. Raises
    ``BackendError`` for an answer that is not a completion, and what the client raises.
    """
    choice = _choice(await client.post(url, PATH, body))
    _finish(choice["finish_reason"])  # One that was aborted may have no versions.
    count = len(choice["token_ids"])
    versions = versions_of(choice.get("weight_versions"), count) if fixed is None else (fixed,) * count
    return _chunk([choice], versions, top)


async def stream(
    client: Client,
    url: str,
    body: Body,
    top: int,
    settled: Callable[[], bool],
    version: int,
    *,
    fixed: bool = False,
) -> AsyncGenerator[Chunk, None]:
    """Yields the tokens of a completion as they come; ``top`` is how many alternatives per token they should hold.

    The first one counts as sampled when it has come.

    With ``fixed`` all of them are of ``version``, because the request names an adapter. Else it is so:

    The server tells the versions of all tokens with the last of them. While ``settled()`` is true, tokens that have
    come are of ``version``. It turns false for good before weights begin to change; later tokens are held until the
    end. Raises ``ServerFailed`` where the stream breaks off, and ``BackendError`` for versions that are not this run's.
    """
    held: list[Any] = []
    given = 0
    first: float | None = None
    async with aclosing(client.events(url, PATH, body)) as events:
        async for event in events:
            choice = _choice(event)
            held.append(choice)
            first = time.monotonic() if first is None and choice["token_ids"] else first
            if _finish(choice["finish_reason"]) is not None:
                count = given + sum(len(each["token_ids"]) for each in held)
                told = choice.get("weight_versions")
                versions = (version,) * count if fixed else versions_of(told, count)
                _check_given(versions[:given], version)
                yield _chunk(held, versions[given:], top, None if given else first)
                return
            if fixed or settled():
                count = sum(len(each["token_ids"]) for each in held)
                chunk = _chunk(held, (version,) * count, top, None if given else first)
                given += len(chunk.ids)
                held.clear()
                yield chunk
    raise ServerFailed(f"the server at {url} ended a stream after {given} tokens without a reason")


async def score(
    client: Client, url: str, ids: Sequence[int], under: Body, *, seconds: float | None = None
) -> list[float]:
    """Returns the server's logprobs of ``ids[1:]`` at temperature 1, which it computes without its prefix cache.

    ``under`` are the fields that say with which weights, and under which name its cache keeps them. Raises what the
    client raises.
    """
    params = {**PLAIN, "max_tokens": 1, "prompt_logprobs": 0}
    body = {"token_ids": list(ids), "sampling_params": params, **under}
    scored = (await client.post(url, PATH, body, seconds=seconds))["prompt_logprobs"][1:]
    return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], scored, strict=True)]


def versions_of(spans: Sequence[dict[str, Any]] | None, count: int) -> tuple[int, ...]:
    """Returns the policy version of each of ``count`` tokens, from the server's ``spans`` of versions.

    Raises ``BackendError`` where they do not cover all tokens, or are not versions of this run.
    """
    versions: list[int] = []
    for span in spans or ():
        if span["start"] != len(versions) or not str(span["version"]).isdecimal():
            break
        versions += [int(span["version"])] * (span["end"] - span["start"])
    if len(versions) != count:
        raise BackendError(
            f"the server says of {count} tokens that they are of weights {spans}, which are no versions of this run",
            fix="nobody else may change its weights",
        )
    return tuple(versions)


def _choice(answer: Any) -> Any:
    if not isinstance(answer, dict):
        raise ServerFailed(f"the server answered with no JSON object: {answer!r:.200}")
    if "error" in answer:
        raise ServerFailed(f"the server failed in the middle of a stream: {answer['error']}")
    return answer["choices"][0]


def _chunk(choices: Sequence[Any], versions: tuple[int, ...], top: int, first_token: float | None = None) -> Chunk:
    content = [token for choice in choices for token in (choice["logprobs"] or {}).get("content") or ()]
    ids = tuple(token for choice in choices for token in choice["token_ids"])
    last = choices[-1]
    logprobs = tuple(token["logprob"] for token in content)
    if len(logprobs) != len(ids) or any(logprob is None or logprob <= _NO_LOGPROB for logprob in logprobs):
        raise BackendError("the server gave a token a logprob that is no number", fix="are its weights finite?")
    return Chunk(
        ids=ids,
        logprobs=logprobs,
        versions=versions,
        top_logprobs=tuple(_alternatives(token["top_logprobs"], top) for token in content) if top else (),
        finish=_finish(last["finish_reason"]),
        stop_string=stop if isinstance(stop := last["stop_reason"], str) else None,
        first_token=first_token,
    )


def _alternatives(tokens: Sequence[Any], top: int) -> tuple[tuple[int, float], ...]:
    """The ``top`` likeliest of ``tokens``; the first of them is the sampled one, whatever its rank."""
    ranked = sorted(tokens, key=lambda token: -token["logprob"])
    return tuple((token["token_id"], token["logprob"]) for token in ranked[:top])


def _finish(reason: str | None) -> FinishReason | None:
    if reason is None or reason in _FINISHES:
        return _FINISHES[reason] if reason else None
    raise ServerFailed(f"the server ended a completion by {reason!r}")


def _check_given(versions: Sequence[int], version: int) -> None:
    if any(each != version for each in versions):
        raise BackendError(
            f"tokens of a stream were given out as of weights {version}, and the server says {sorted(set(versions))}",
            fix="nobody else may change its weights",
        )
