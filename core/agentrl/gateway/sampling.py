"""How a completion is sampled: which fields a session grants, what they come to, and the seeds.

A call's seed derives from the session's seed and from what is asked, never from when it is asked. So an evaluation
repeats exactly, and equal requests of one episode still give different samples.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
import threading
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agentrl.errors import GatewayError, shown
from agentrl.gateway.contract import ModelRequest, SessionSettings
from agentrl.inference.contract import Capabilities, Sampling

__all__ = ["Digested", "Draw", "Draws", "resolve_sampling"]

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
"""The fields that reshape the distribution, with the values at which they have no effect."""
_MOST_BIAS = 100.0
"""The largest bias of a token's logit, as in the chat completions API."""


def resolve_sampling(
    request: ModelRequest,
    settings: SessionSettings,
    capabilities: Capabilities,
    *,
    room: int,
    seed: int,
    stop_ids: frozenset[int],
) -> Sampling:
    """How a completion is sampled: by the fields of the request, and by the session's defaults where it sets none.

    ``room`` is how many tokens the context leaves, ``seed`` what a backend that takes seeds is given (the request's own
    is mixed into it already), and ``stop_ids`` end the completion. Raises ``GatewayError`` (400) for what a training
    session cannot account for, and for what the backend cannot do.
    """
    fields = request.fields
    _check_distribution(request, settings, capabilities)
    if fields.get("seed") is not None:
        _integer(fields, "seed", -(2**63))
    limit = settings.max_tokens if fields.get("max_tokens") is None else _integer(fields, "max_tokens", 1)
    return Sampling(
        temperature=_number(fields, "temperature", settings.temperature),
        top_p=_number(fields, "top_p", 1.0, most=1.0),
        top_k=0 if fields.get("top_k") is None else max(0, _integer(fields, "top_k", -1)),
        max_tokens=room if limit is None else min(limit, room),
        seed=seed if "seed" in capabilities.sampling else 0,
        stop=_stop(fields.get("stop")),
        stop_ids=stop_ids,
        top_logprobs=request.top_logprobs,
        logit_bias=_biases(fields.get("logit_bias")),
    )


def _check_distribution(request: ModelRequest, settings: SessionSettings, capabilities: Capabilities) -> None:
    fields = request.fields
    for name, neutral in _NEUTRAL.items() if fields else ():
        if fields.get(name) is not None and fields[name] not in neutral:
            _check_reshaping(name, fields[name], settings, capabilities)
    if settings.training and _number(fields, "temperature", settings.temperature) == 0:
        raise GatewayError(
            "temperature=0 samples every episode alike, from which nothing can be learned",
            param="temperature",
            code="unsupported_value",
            fix="set rollout.override.temperature, such as 1.0, or drop it from the request",
        )
    _check_temperature(_number(fields, "temperature", settings.temperature), capabilities)
    for name in ("seed", "stop"):
        if fields.get(name) is not None and name not in capabilities.sampling:
            raise _unsupported(name, fields[name])
    if request.top_logprobs and "top_logprobs" not in capabilities.sampling:
        raise _unsupported("top_logprobs", request.top_logprobs)


def _check_temperature(temperature: float, capabilities: Capabilities) -> None:
    if capabilities.honours_temperature(temperature):
        return
    least, most = capabilities.temperatures
    honoured = f"0, and from {least:g} to {most:g}" if "temperature" in capabilities.sampling else "0 and 1"
    raise GatewayError(
        f"temperature={temperature:g} is not supported by the inference backend, which samples at {honoured}",
        param="temperature",
        code="unsupported_value",
        fix="ask for one of these, or set rollout.override.temperature",
    )


def _check_reshaping(name: str, value: Any, settings: SessionSettings, capabilities: Capabilities) -> None:
    if settings.training:
        raise GatewayError(
            f"{name}={value!r} changes the distribution that tokens are drawn from, which training cannot account for",
            param=name,
            code="unsupported_value",
            fix=f"drop it from the request, or set rollout.override: {{{name}: null}}",
        )
    if name not in capabilities.sampling:
        raise _unsupported(name, value)


def _unsupported(name: str, value: Any) -> GatewayError:
    return GatewayError(
        f"{name}={value!r} is not supported by the inference backend",
        param=name,
        code="unsupported_value",
        fix=f"drop it from the request, or set rollout.override: {{{name}: null}}",
    )


def _number(fields: Mapping[str, Any], name: str, default: float, most: float = sys.float_info.max) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        limit = f"from 0 to {most:g}" if most < sys.float_info.max else "of 0 or more"
        raise GatewayError(f"{name}={shown(value, 80)} is not a number {limit}", param=name, code="invalid_type")
    return float(value)


def _integer(fields: Mapping[str, Any], name: str, least: int) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise GatewayError(
            f"{name}={shown(value, 80)} is not a whole number of at least {least}", param=name, code="invalid_type"
        )
    return value


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value or []
    if not isinstance(strings, list) or not all(isinstance(text, str) and text for text in strings):
        raise GatewayError(
            f"stop={shown(value, 80)} is neither a text nor a list of texts", param="stop", code="invalid_type"
        )
    return tuple(strings)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """What is added to the logits of ids, from an object whose keys are ids in decimal digits."""
    given = {} if value is None else value
    if not isinstance(given, dict) or not all(_is_bias(token, bias) for token, bias in given.items()):
        raise GatewayError(
            f"logit_bias={shown(value, 80)} is no object of ids and numbers from -{_MOST_BIAS:g} to {_MOST_BIAS:g}",
            param="logit_bias",
            code="invalid_type",
        )
    return tuple((int(token), float(bias)) for token, bias in given.items())


def _is_bias(token: object, bias: object) -> bool:
    number = isinstance(bias, int | float) and not isinstance(bias, bool) and -_MOST_BIAS <= bias <= _MOST_BIAS
    return number and isinstance(token, str) and token.isascii() and token.isdigit()


class Digested(NamedTuple):
    """The digest of a session's seed and of token ids, to which that of further ids can be added."""

    state: hashlib._Hash
    length: int
    """How many ids it holds."""

    def further(self, ids: Sequence[int]) -> Digested:
        """The digest with ``ids`` after the others."""
        state = self.state.copy()
        state.update(array("q", ids).tobytes())
        return Digested(state, self.length + len(ids))


class Draw(NamedTuple):
    """What a call's randomness derives from: digests that hold the session's seed."""

    request: bytes
    """Digest of the request, which equal requests share."""
    call: bytes
    """Digest of the request and of ``number``, which is unique to the call."""
    number: int
    """The call's number among equal requests, from 0."""
    prompt: Digested
    """The digest of the prompt alone."""


class _Numbers:
    """Numbers from 0, smallest first; one that is given back is the next to be taken."""

    def __init__(self) -> None:
        self._given_back: list[int] = []
        self._fresh = 0

    def take(self) -> int:
        if self._given_back:
            return heapq.heappop(self._given_back)
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, number: int) -> None:
        heapq.heappush(self._given_back, number)


class Draws:
    """The randomness of one session. Safe to use from any thread."""

    def __init__(self, seed_key: tuple[int | str, ...]) -> None:
        self._seed = hashlib.sha256(repr(seed_key).encode())
        self._numbers: dict[bytes, _Numbers] = {}
        self._lock = threading.Lock()

    def take(self, prompt_ids: Sequence[int], fields: str, begun: Digested | None = None) -> Draw:
        """What everything random about a request derives from. A request that fails must ``give_back`` its draw.

        Requests are equal where they have the same prompt, which stands for the parent chain and the messages as the
        model sees them, and the same sampling ``fields``, as canonical JSON. ``begun`` is the digest of the first ids
        of the prompt, where another draw of this session has led to it.
        """
        begun = begun or Digested(self._seed, 0)
        prompt = begun.further(prompt_ids[begun.length :])
        shared = prompt.state.copy()
        shared.update(fields.encode())
        key = shared.digest()
        with self._lock:
            numbers = self._numbers.get(key)
            if numbers is None:
                numbers = self._numbers[key] = _Numbers()
            number = numbers.take()
        return Draw(key, hashlib.sha256(key + number.to_bytes(4)).digest(), number, prompt)

    def give_back(self, draw: Draw) -> None:
        """Let the next request equal to a failed one have its draw."""
        with self._lock:
            self._numbers[draw.request].give_back(draw.number)

    def mixed(self, seed: int) -> int:
        """A request's own ``seed`` as it is passed to an endpoint: from 0 to 2**31, and different in every episode."""
        digest = self._seed.copy()
        digest.update(repr(seed).encode())
        return int.from_bytes(digest.digest()[:4]) >> 1
