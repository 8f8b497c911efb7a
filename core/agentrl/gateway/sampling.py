"""Which sampling fields a session grants, and what they come to."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from agentrl.errors import GatewayError, shown
from agentrl.gateway.contract import SessionSettings
from agentrl.gateway.request import ModelRequest
from agentrl.inference.contract import Capabilities, Sampling

__all__ = ["resolve_sampling"]

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
}
"""Values of the fields that reshape the distribution at which they leave it alone."""


def resolve_sampling(
    request: ModelRequest,
    settings: SessionSettings,
    capabilities: Capabilities,
    *,
    room: int,
    seed: int,
    stop_ids: frozenset[int],
) -> Sampling:
    """How a completion is sampled: the request's fields over the session's defaults.

    ``room`` is what the context leaves, in tokens; ``seed``, in which the request's own is mixed, is used where the
    backend honours one. Raises ``GatewayError`` (400) for what a training session cannot account for or the backend
    cannot do.
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
    )


def _check_distribution(request: ModelRequest, settings: SessionSettings, capabilities: Capabilities) -> None:
    fields = request.fields
    for name, neutral in _NEUTRAL.items():
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
