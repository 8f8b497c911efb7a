"""One completion by one server: how a request is put to vLLM, and from its answer to chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from agentrl import BackendError, UnsupportedSampling
from agentrl.inference.contract import Chunk, FinishReason, GenerationRequest, Sampling
from agentrl_vllm.client import Client, ServerFailed

__all__ = ["PATH", "TEMPERATURES", "Body", "complete", "request_body", "sampling_params", "stream", "versions_of"]

Body = dict[str, object]
"""An object of JSON."""

TEMPERATURES = (0.01, 2.0)
"""From the least above 0, which vLLM samples at in silence where a smaller one is asked for, to the most it accepts."""
_LEAST_TOP_P = 1e-9


def sampling_params(sampling: Sampling, room: int, honoured: frozenset[str]) -> Body:
    """The fields of vLLM's ``SamplingParams``; ``room`` is how many tokens the context leaves.

    All that would be taken from the model's own defaults is given. Raises ``UnsupportedSampling`` for what vLLM
    refuses or changes in silence, and for a field that is not among those ``honoured``.
    """
    _check(sampling, honoured)
    stops: Body = {"stop": list(sampling.stop), "skip_special_tokens": False} if sampling.stop else {}
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
    }


def _check(sampling: Sampling, honoured: frozenset[str]) -> None:
    temperature = sampling.temperature
    least, most = TEMPERATURES
    if temperature and not least <= temperature <= most:
        raise UnsupportedSampling(
            f"vLLM samples at temperature 0, and from {least:g} to {most:g}: not at {temperature:g}",
            fix="choose one of those",
        )
    for name, neutral in (("top_p", 1.0), ("top_k", 0), ("stop", ()), ("top_logprobs", 0)):
        if name not in honoured and getattr(sampling, name) != neutral:
            raise UnsupportedSampling(
                f"{name}={getattr(sampling, name)!r} is beyond these vLLM servers, whose logprobs would be others",
                fix="let agentrl start the servers",
            )


PATH = "/inference/v1/generate"

_NO_LOGPROB = -9999.0
"""What the endpoint says where a logprob is no number."""

_FINISHES: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def request_body(request: GenerationRequest, params: Body) -> Body:
    """What is posted for ``request``."""
    return {"token_ids": list(request.prompt_ids), "sampling_params": params, "stream": request.stream}


async def complete(client: Client, url: str, body: Body, top: int) -> Chunk:
    """The whole completion."""
    choice = _choice(await client.post(url, PATH, body))
    _finish(choice["finish_reason"])  # One that was aborted may have no versions.
    versions = versions_of(choice.get("weight_versions"), len(choice["token_ids"]))
    return _chunk([choice], versions, top)


async def stream(
    client: Client, url: str, body: Body, top: int, settled: Callable[[], bool], version: int
) -> AsyncGenerator[Chunk, None]:
    """Tokens as they come.

    Of which version they are the server says with the last of them. As long as ``settled()``, which turns false for
    good before the weights begin to change, all that has come is of ``version``; what comes later is held until then.
    """
    held: list[Any] = []
    given = 0
    async with aclosing(client.events(url, PATH, body)) as events:
        async for event in events:
            choice = _choice(event)
            held.append(choice)
            if _finish(choice["finish_reason"]) is not None:
                count = given + sum(len(each["token_ids"]) for each in held)
                versions = versions_of(choice.get("weight_versions"), count)
                _check_given(versions[:given], version)
                yield _chunk(held, versions[given:], top)
                return
            if settled():
                chunk = _chunk(held, (version,) * sum(len(each["token_ids"]) for each in held), top)
                given += len(chunk.ids)
                held.clear()
                yield chunk
    raise ServerFailed(f"the server at {url} ended a stream after {given} tokens without a reason")


def versions_of(spans: Sequence[dict[str, Any]] | None, count: int) -> tuple[int, ...]:
    """The version of each of ``count`` tokens. Raises ``BackendError`` where the server does not say all of them."""
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


def _chunk(choices: Sequence[Any], versions: tuple[int, ...], top: int) -> Chunk:
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
    )


def _alternatives(tokens: Sequence[Any], top: int) -> tuple[tuple[int, float], ...]:
    """The likeliest of ``tokens``, the first of which is the sampled one whatever its rank."""
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
