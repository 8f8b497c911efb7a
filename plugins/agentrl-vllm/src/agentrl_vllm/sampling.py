"""How ``Sampling`` is said to vLLM."""

from __future__ import annotations

from agentrl.errors import UnsupportedSampling
from agentrl.inference.contract import Sampling

__all__ = ["TEMPERATURES", "Body", "sampling_params"]

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
