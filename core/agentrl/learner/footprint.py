"""What a pass of the learner takes beside the weights: the tensors that autograd keeps, and those that come and go.

Which tensors a layer keeps depends on its family, on the attention over the forest, on adapters and on checkpointing.
So nothing is computed by a formula for a family: two layers with the model's own widths and random numbers go forward
and backward over a few tokens, in the learner's own code, and every tensor that PyTorch makes is counted. What grows
with the tokens is a line through two counts. The vocabulary's part follows from how ``agentrl.learner.policy`` cuts it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agentrl.config.training import TrainingSection
from agentrl.learner.adapters import LoraAdapter
from agentrl.learner.attention import NAME, ForestAttention
from agentrl.learner.masters import Masters
from agentrl.learner.policy import MAX_LOGITS
from agentrl.learner.probe import probe_forest
from agentrl.learner.recompute import recompute_layers
from agentrl.learner.vocabulary import BLOCK, KEPT

__all__ = ["PassFootprint", "measure_pass"]

_LAYERS = 2
_TOKENS = (37, 101)
"""The lengths of the two runs: primes, which are no width of a model."""
_VOCABULARY = 64
"""That of the measured model, whose vocabulary is not measured."""


@dataclass(frozen=True, slots=True)
class PassFootprint:
    """Bytes that a forward and backward pass takes beside the weights, their gradients and the optimiser."""

    layers: int
    layer_token: float
    """What one layer keeps of one token until its gradient is computed."""
    token: float
    """The same for what is outside the layers."""
    working_token: float
    """What comes and goes for one token while the gradient of a layer is computed."""
    width: int
    """The numbers of a hidden state."""
    vocabulary: int
    itemsize: int
    """Bytes of a number of the computation."""
    on_cpu: bool

    def bytes(self, tokens: int) -> int:
        """Return the most bytes that a pass of ``tokens`` tokens takes at a time, each of which is a target."""
        kept = tokens * (self.layers * self.layer_token + self.token)
        return int(kept + max(tokens * self.working_token, self.head_bytes(tokens)))

    def layer_bytes(self, tokens: int) -> int:
        """Return what the layers take of that, and what comes and goes in one of them."""
        return int(tokens * (self.layers * self.layer_token + self.token + self.working_token))

    def head_bytes(self, tokens: int) -> int:
        """Return what the logits of ``tokens`` tokens take, and what is made of them.

        On the CPU that is what ``agentrl.learner.vocabulary`` keeps and one block, elsewhere three tensors of the size
        that ``agentrl.learner.policy`` computes at once: logits, probabilities and a gradient.
        """
        numbers = tokens * self.vocabulary
        if self.on_cpu:
            exact = min(numbers, KEPT) + (BLOCK if numbers > KEPT else 0)
            rounded = min(numbers, BLOCK)
        else:
            rounded = min(numbers, max(MAX_LOGITS, self.vocabulary))
            exact = 3 * rounded
        # The gradient of the head comes and goes before it is added up, and that of the features.
        gradients = self.itemsize * self.width * (self.vocabulary + tokens)
        return 4 * exact + (self.itemsize * rounded if self.itemsize < 4 else 0) + gradients


def measure_pass(
    config: PreTrainedConfig, training: TrainingSection, device: torch.device, dtype: torch.dtype
) -> PassFootprint:
    """Measure a model of ``config`` as ``training`` has it computed on ``device``, with weights of ``dtype``.

    It takes the memory of two of its layers for a moment. Raises what transformers raises for a config that it cannot
    build, and ``ConfigError`` for an adapter or for checkpointing that the model does not take.
    """
    text = config.get_text_config()
    model = _small(config, training, dtype)
    first, second = (_run(model, tokens) for tokens in _TOKENS)
    span = _TOKENS[1] - _TOKENS[0]

    def grown(count: Callable[[_Count], int]) -> float:
        return max(0.0, (count(second) - count(first)) / span)

    layer = grown(lambda run: run.layer)
    kept = grown(lambda run: run.kept)
    return PassFootprint(
        layers=text.num_hidden_layers,
        layer_token=layer,
        token=max(0.0, kept - _LAYERS * layer),
        working_token=max(0.0, grown(lambda run: run.peak) - kept),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        itemsize=dtype.itemsize,
        on_cpu=device.type == "cpu",
    )


def _small(config: PreTrainedConfig, training: TrainingSection, dtype: torch.dtype) -> PreTrainedModel:
    """The model with two layers and hardly any vocabulary, prepared as a learner prepares it."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    layers = text.num_hidden_layers
    changes: dict[str, Any] = {
        name: value[-_LAYERS:]
        for name, value in vars(text).items()
        if isinstance(value, list) and len(value) == layers > _LAYERS
    }
    changes |= {"num_hidden_layers": min(layers, _LAYERS), "vocab_size": _VOCABULARY, "pad_token_id": None}
    for name, value in changes.items():
        setattr(text, name, value)
    state = torch.get_rng_state()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    finally:
        torch.set_rng_state(state)
    if training.lora is not None:
        LoraAdapter(model, training.lora)
    probe_forest(model)
    Masters().take(model, torch.device("cpu"), dtype)
    if training.gradient_checkpointing:
        recompute_layers(model)
    model.train(False)
    return model


@dataclass(frozen=True, slots=True)
class _Count:
    """Bytes of the tensors that are there."""

    layer: int
    """Of those that the last layer has made and that stay."""
    kept: int
    """After the forward pass."""
    peak: int
    """The most at a time, up to the end of the backward pass."""


def _run(model: PreTrainedModel, tokens: int) -> _Count:
    inputs: dict[str, Any] = {"input_ids": torch.zeros((1, tokens), dtype=torch.long), "use_cache": False}
    if model.config._attn_implementation == NAME:
        inputs["position_ids"] = torch.arange(tokens)[None]
        inputs["forest"] = ForestAttention(np.arange(tokens), np.full(tokens, tokens))
    body = model.base_model
    live = _Live({weight.shape for weight in model.parameters()})
    layers = [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
    marks: list[int] = []
    hooks = [each.register_forward_hook(lambda *_: marks.append(live.now)) for each in layers]
    with live:
        hidden = body(**inputs).last_hidden_state
        kept = live.now
        for hook in hooks:
            hook.remove()
        hidden.backward(torch.zeros_like(hidden))
    for weight in model.parameters():
        weight.grad = None
    layer = marks[-1] - marks[-2] if len(marks) > 1 else kept // max(1, len(marks))
    return _Count(layer, kept, live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations have made within it and that still are somebody's.

    Those of ``weights``, the shapes of weights, are left out: they are gradients, which the plan counts as such.
    """

    def __init__(self, weights: Collection[torch.Size]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for each in _tensors(made):
            storage = each.untyped_storage()
            place = storage._cdata
            if place in before or place in self._known or each.shape in self._weights:
                continue
            self._known.add(place)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, place, storage.nbytes())
        return made

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _tensors(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, Mapping):
        for each in held.values():
            yield from _tensors(each)
    elif isinstance(held, Sequence) and not isinstance(held, str):
        for each in held:
            yield from _tensors(each)
