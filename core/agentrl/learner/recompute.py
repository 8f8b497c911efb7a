"""Gradient checkpointing: the layers of a model keep their inputs alone, and are computed again in the backward pass.

The gradient stays what it was (Chen et al. 2016, "Training deep nets with sublinear memory cost"), a step takes about a
third longer, and a pass keeps one hidden state a layer and token instead of a score of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentrl.errors import ConfigError

__all__ = ["recompute_layers"]


def recompute_layers(model: PreTrainedModel) -> None:
    """Have every layer of ``model`` computed again where its gradient is wanted.

    Transformers does so only in training mode, which would turn dropout on, and then sampler and learner would not
    compute the same. Raises ``ConfigError`` for a model without layers that can be.
    """
    layers: list[nn.Module] = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"training.gradient_checkpointing=true: {type(model).__name__} has no layers that can be computed again",
            fix="set it to false, and lower training.tokens_per_batch where memory is short",
            key="training.gradient_checkpointing",
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
