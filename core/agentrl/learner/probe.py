"""The start-up probe: a model takes the forest, and fused parts, only after it has scored with them as without."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel

from agentrl.learner.attention import NAME
from agentrl.learner.contract import Targets
from agentrl.learner.fused import fuse
from agentrl.learner.policy import Policy

if TYPE_CHECKING:
    from agentrl.learner.contract import Floats, Ints
    from agentrl.learner.shards import Shards

__all__ = ["probe_forest"]

TOLERANCE = {4: 1e-3, 2: 0.3}
"""Greatest difference of a log-probability that rounding explains, by the bytes of a weight; a wrong mask does more."""
SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def probe_forest(model: PreTrainedModel, shards: Shards | None = None) -> str | None:
    """Switch ``model`` to forest attention and fused parts if it can take them, else leave it as it was.

    Returns ``None``, or a sentence that says why the model trains on padded rows. Layers that mix positions by other
    means than standard attention (recurrence, linear attention, chunks, sinks) are recognised by their configured type,
    or by a difference of log-probabilities on a small random tree. ``shards`` are those of a model that is spread over
    ranks, all of which call this and find the same.
    """
    config = model.config.get_text_config()
    targets, paths = _small_tree(config.vocab_size)
    size = sum(map(len, paths))
    separate = Policy(model, shards=shards).score_paths(targets, paths, size).logprob
    if shards is None:  # else parts of it are elsewhere
        _fuse(model, targets, paths, separate)
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - SUPPORTED_LAYERS)
    if unknown:
        return _sentence(f"it has layers of type {', '.join(unknown)}")
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        together = Policy(model, shards=shards).score_paths(targets, paths, size, forest=True).logprob
        difference = float(np.abs(separate - together).max())
        if difference <= TOLERANCE.get(model.dtype.itemsize, TOLERANCE[4]):
            return None
        reason = f"logprobs of a forest differ from those of separate rows by {difference:.2g}"
    except Exception as error:  # whatever a foreign model raises, padded rows still train it
        reason = f"{type(error).__name__}: {error}"
    model.set_attn_implementation(before)
    return _sentence(reason)


def _fuse(model: PreTrainedModel, targets: Targets, paths: list[Ints], expected: Floats) -> None:
    """Fuse the parts of ``model``, if it then scores as before."""
    fused = fuse(model)
    if not fused:
        return
    try:
        found = Policy(model).score_paths(targets, paths, sum(map(len, paths))).logprob
        difference = float(np.abs(found - expected).max())
        if difference <= TOLERANCE.get(model.dtype.itemsize, TOLERANCE[4]):
            return
        reason = f"logprobs then differ by {difference:.2g}"
    except Exception as error:  # whatever a foreign model expects of its parts, its own train it
        reason = f"{type(error).__name__}: {error}"
    fused.undo()
    warnings.warn(f"the model is trained without fused parts, at about 0.8 of the speed: {reason}", stacklevel=2)


def _sentence(reason: str) -> str:
    return f"the model is trained on padded rows, which computes shared prefixes again for every path: {reason}"


def _small_tree(vocabulary: int) -> tuple[Targets, list[Ints]]:
    """A prompt with two branches, one of which branches again, and a tree beside it; every next token is a target."""
    random = np.random.default_rng(0)
    prompt, turn, *ends = (random.integers(vocabulary, size=size) for size in (24, 12, 9, 14, 5, 17))
    paths = [
        np.concatenate(pieces)
        for pieces in ([prompt, turn, ends[0]], [prompt, turn, ends[1]], [prompt, ends[2]], [ends[3]])
    ]
    targets = Targets(
        path=np.repeat(np.arange(len(paths)), [len(ids) - 1 for ids in paths]),
        depth=np.concatenate([np.arange(len(ids) - 1) for ids in paths]),
        token=np.concatenate([ids[1:] for ids in paths]),
        temperature=np.ones(sum(len(ids) - 1 for ids in paths)),
    )
    return targets, paths
