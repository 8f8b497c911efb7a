"""The section ``training``: how the model's weights are changed."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer

from agentrl.config.section import Section, named

__all__ = [
    "AMPLE_TOKENS",
    "LoraModel",
    "OptimiserSection",
    "TrainingSection",
]


def _targets(value: Any) -> Any:
    if value != "auto" and not (isinstance(value, list) and value):
        raise ValueError(f"should be auto, or a list such as [q_proj, v_proj], not {json.dumps(value)}")
    return value


class LoraModel(Section):
    """An adapter of low rank over frozen weights (Hu et al. 2021, "LoRA"), trained in their place."""

    rank: int = Field(16, ge=1)
    """Rank of the adapter: `B @ A` with so many columns of `B` and rows of `A` is added to each matrix. At most the
    smaller side of the smallest matrix."""
    alpha: float | None = Field(None, gt=0)
    """The product is multiplied by `alpha / rank`. Null takes twice the rank, so that the factor is 2."""
    targets: Annotated[Literal["auto"] | list[str], BeforeValidator(_targets)] = "auto"
    """The layers that are adapted: `auto` for all linear projections of attention and MLP, or the last parts of their
    names, such as `[q_proj, v_proj]`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped while a gradient is computed. The learner's log-probabilities of
    a step are noisy then, and `policy/mismatch_kl` with them."""

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return 2.0 if self.alpha is None else self.alpha / self.rank


def _ranked(value: Any) -> Any:
    """``{rank: …}`` for an adapter that is written as its rank alone."""
    if isinstance(value, bool | str):
        raise ValueError(f"should be null, a rank such as 16, or {{rank: 16, targets: auto}}, not {json.dumps(value)}")
    if isinstance(value, dict) and "name" in value:  # As it is merged where keys were set over a rank.
        return {"rank": value["name"], **{key: held for key, held in value.items() if key != "name"}}
    return {"rank": value} if isinstance(value, int | float) else value


class OptimiserSection(Section):
    name: Literal["adamw"] = "adamw"
    """The rule by which gradients change weights."""
    bits: Literal[8, 32] = 32
    """Bits of each of the two moments that AdamW keeps of a weight. 8 saves 6 bytes a weight, needs the package torchao
    (`pip install 'agentrl-core[torchao]'`) and a C++ compiler, with which the first step takes half a minute longer."""
    offload: bool = False
    """Whether the moments, the gradients and the float32 weights are in the CPU's memory while the model is on CUDA,
    where the optimiser then runs too: slower, and the GPU holds the weights and activations alone."""

    @model_serializer
    def _short(self) -> Any:
        """The optimiser with its default keys is written as its name."""
        keys = {key: value for key, value in self if value != type(self).model_fields[key].default}
        return {"name": self.name, **keys} if keys else self.name


def _rate(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if value != "auto" and not is_number:
        raise ValueError(f"should be auto, or a number of at least 0, not {value!r}")
    return value


def _tokens(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"should be auto, or a whole number of at least 1, not {value!r}")
    return value


AMPLE_TOKENS = 8192
"""`training.tokens_per_batch=auto` where memory is ample."""


class TrainingSection(Section):
    steps: int = Field(60, ge=0)
    """Number of optimiser steps."""
    learning_rate: Annotated[float | Literal["auto"], BeforeValidator(_rate)] = "auto"
    """Peak learning rate of AdamW. `auto` goes by the number of the model's parameters, from 1e-4 for half a million by
    2e-5 for 135 million to 1e-6 for 7 billion and more; an adapter has ten times the rate of the whole model."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero to its peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: `constant`, or `linear` or `cosine` to zero at the last step."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient; a larger gradient is scaled down to it."""
    minibatches: int = Field(1, ge=1)
    """Updates of the weights that a step makes, each on its share of the step's episodes. The version of the weights
    rises by one a step all the same."""
    lora: Annotated[LoraModel | None, BeforeValidator(_ranked)] = None
    """Train an adapter over the frozen model, whose checkpoints are adapter folders: a rank such as 16, or
    `{rank: 16, alpha: 32, targets: auto, dropout: 0}`. Null trains all weights."""
    optimiser: Annotated[OptimiserSection, BeforeValidator(named)] = OptimiserSection()
    """The optimiser: `adamw`, or `{name: adamw, bits: 8, offload: true}` to have it take less memory."""
    gradient_checkpointing: bool = False
    """Whether layers keep their inputs alone and are computed again for the gradient, which saves most of the memory of
    a pass and takes about a third more time."""
    tokens_per_batch: Annotated[int | Literal["auto"], BeforeValidator(_tokens)] = "auto"
    """Most tokens in one forward pass. A step takes as many passes as its tokens need. `auto` is 8192, or 4096, 2048,
    1024 or 512 where the memory holds no more: see `--dry-run`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights and of what is computed with them. `auto` is bfloat16 on CUDA and float32 elsewhere. In
    bfloat16 the optimiser keeps the weights in float32 too, and the gradients."""
    device: str = "auto"
    """Device to train on: `auto`, `cpu`, `cuda` or `cuda:N`."""
    processes: int = Field(1, ge=1)
    """Processes that train the model together, each with its share of the weights and of every step: on a machine with
    GPUs each has one of them, and else a share of the processors. `scheduler` says on which machines they are."""
    restarts: int = Field(3, ge=0)
    """How often a run goes on by itself, from its newest checkpoint and the stored episodes, where one of its processes
    is lost, such as one of `training.processes`. A process that is lost twice in the same step ends the run."""
    timeout: float = Field(3600, gt=0)
    """Seconds that the learner may take for one step, and that one checkpoint may take to be written or loaded."""
    checkpoint_every: int = Field(20, ge=0)
    """Steps between checkpoints. 0 saves one at the end only."""
    keep: int = Field(3, ge=1)
    """How many checkpoints a run keeps: the newest ones. Beside them it keeps the best by evaluation, and the one that
    it was resumed from."""

    @property
    def pass_tokens(self) -> int:
        """``tokens_per_batch`` as a number; `auto` is what it is where memory is ample."""
        return AMPLE_TOKENS if self.tokens_per_batch == "auto" else self.tokens_per_batch

    @property
    def rate(self) -> float:
        """``learning_rate`` as a number. Raises ``ValueError`` where `auto` has not become one yet."""
        if isinstance(self.learning_rate, str):
            raise ValueError("training.learning_rate is auto, which a run resolves by its model before it trains")
        return self.learning_rate
