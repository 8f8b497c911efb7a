"""The optimiser: AdamW with gradient clipping and a learning rate, which refuses gradients that are not finite."""

from __future__ import annotations

import importlib
import logging
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agentrl.config.training import OptimiserSection, TrainingSection
from agentrl.errors import ConfigError, PluginError, RunError
from agentrl.extras import require
from agentrl.learner.masters import Masters
from agentrl.learner.ranks import Ranks
from agentrl.threads import ThreadLimit

__all__ = ["Optimiser", "check_optimiser", "learning_rate", "recommended_rate", "with_rate"]

UPDATE_TOKENS = 32
"""An update takes about as long as a pass of this many tokens."""
PATIENCE = 5
"""Steps in a row whose gradient may be NaN or infinite before the run stops."""
_KNOWN = ((440e3, 1e-4), (134.5e6, 2e-5), (7e9, 1e-6))
"""Parameters of a model, and the rate that suits it.

The first two are measured: the bundled `tiny` learns its tasks at 1e-4 in a minute, and SmolLM2 135M one-digit sums at
2e-5 in twelve steps, while at 1e-4 it wanders for as many before it learns. The last is what others train models of 7
billion parameters with (TRL's ``GRPOConfig`` has 1e-6 as its default).
"""

_ADAPTER = 10.0
"""How many times the whole model's rate an adapter takes, whatever its rank: a factor of about ten is what Schulman and
Thinking Machines Lab found ("LoRA Without Regret", 2025). SmolLM2 135M learned one-digit sums with it, at rank 16: held
out from .14 to .71 in ten steps."""


class Optimiser:
    """AdamW (Loshchilov and Hutter 2019) over float32 masters; one-dimensional weights are not decayed."""

    def __init__(self, masters: Masters, training: TrainingSection, ranks: Ranks | None = None) -> None:
        """Where the masters are shares, ``ranks`` says who has the others: all steps are taken by all then."""
        self._masters = masters
        self._ranks = Ranks.alone() if ranks is None else ranks
        self._parameters = list(masters.parameters.values())
        self._threads = ThreadLimit(sum(parameter.numel() for parameter in self._parameters))
        self._training = training
        self.bad_in_a_row = 0
        """How many steps without a finite gradient came last."""
        decayed = {name: each for name, each in masters.parameters.items() if each.ndim > 1}
        others = {name: each for name, each in masters.parameters.items() if each.ndim <= 1}
        self.names = [*decayed, *others]
        """The names of what is trained, in the order in which ``state_dict`` has them."""
        groups = [
            {"params": list(decayed.values()), "weight_decay": training.weight_decay},
            {"params": list(others.values()), "weight_decay": 0.0},
        ]
        self._adamw = _adamw(groups, training)

    def step(self, step: int, loss: float) -> dict[str, float]:
        """Update the weights from their gradients, drop the gradients, and return metrics by name.

        ``step`` counts from 0 and sets the learning rate. A gradient of exactly zero changes nothing, not even the
        moments: there was nothing to learn. A gradient or a ``loss`` that is NaN or infinite is dropped and counted.
        Raises ``RunError`` when that has happened ``PATIENCE`` times in a row.
        """
        rate = learning_rate(self._training, step)
        with self._threads.of(UPDATE_TOKENS):
            norm = self._clip()
            finite = math.isfinite(norm) and math.isfinite(loss)
            updated = finite and norm > 0.0
            if updated:
                for group in self._adamw.param_groups:
                    group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else rate
                self._lay_alike()
                self._adamw.step()
                self._masters.publish()
        self._adamw.zero_grad()
        self._count_bad(finite, step)
        return {"policy/grad_norm": norm, "policy/learning_rate": rate, "policy/updated": float(updated)}

    def _lay_alike(self) -> None:
        """Have gradients and moments lie in memory in the order in which their weights do.

        AdamW goes over all of them as they lie, and an engine may have had weights moved since.
        """
        if self._training.optimiser.bits != 32:
            return
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = _laid_as(parameter, parameter.grad)
            state = self._adamw.state.get(parameter, {})
            state |= {name: _laid_as(parameter, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor)}

    def _clip(self) -> float:
        """Scale the gradients down to the largest norm, and return the norm that they had, all ranks' together."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = self._ranks.norm(nn.utils.get_total_norm(gradients, foreach=True))
        nn.utils.clip_grads_with_norm_(self._parameters, self._training.max_grad_norm, norm, foreach=True)
        return float(norm)

    def _count_bad(self, finite: bool, step: int) -> None:
        self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
        if self.bad_in_a_row >= PATIENCE:
            raise RunError(
                f"the loss or its gradient was NaN or infinite in {PATIENCE} steps in a row, up to step {step + 1}",
                fix="lower training.learning_rate, raise training.warmup_steps or set training.precision=float32",
            )

    def states(self) -> Mapping[Any, dict[str, Any]]:
        """Return the moments of each parameter, by their names: the optimiser's own dictionaries."""
        return self._adamw.state

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` takes up: the moments, and how many bad steps came last."""
        return {"adamw": self._adamw.state_dict(), "bad_in_a_row": self.bad_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self._adamw.load_state_dict(state["adamw"])
        self.bad_in_a_row = state["bad_in_a_row"]

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return what AdamW keeps of the weights that it has updated, by their names, or of this rank's shares."""
        state = self._adamw.state
        parameters = self._masters.parameters
        return {name: dict(state[parameters[name]]) for name in self.names if state.get(parameters[name])}

    def load_moments(self, moments: Mapping[str, Mapping[str, Tensor]], bad_in_a_row: int) -> None:
        """Go on from what ``moments`` returned, after so many bad steps."""
        groups = self._adamw.state_dict()["param_groups"]
        state = {index: dict(moments[name]) for index, name in enumerate(self.names) if name in moments}
        self._adamw.load_state_dict({"state": state, "param_groups": groups})
        self.bad_in_a_row = bad_in_a_row


def _laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    if tensor.shape != parameter.shape or tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def check_optimiser(settings: OptimiserSection, device: torch.device, *, together: bool = False) -> None:
    """Raise where a learner on ``device``, or several ``together``, cannot have the optimiser that ``settings`` want.

    ``ConfigError`` for offloading from a CPU and for 8 bits over several ranks, and ``PluginError`` for 8 bits where
    the package or the compiler is missing that they need.
    """
    if settings.offload and device.type == "cpu":
        raise ConfigError(
            "training.optimiser.offload=true has no effect: the learner is on the CPU, and so is its memory",
            fix="leave it out; bits=8 makes the optimiser's states smaller",
            key="training.optimiser.offload",
        )
    if settings.bits == 32:
        return
    if together:
        raise ConfigError(
            "training.optimiser.bits=8 is for one process: its moments are rounded in blocks that other processes "
            "would cut elsewhere",
            fix="set it to 32, which takes as much memory of each of four processes, or training.processes=1",
            key="training.optimiser.bits",
        )
    require("torchao")
    # Its kernels are made by torch.compile: in C++ for the CPU, else with Triton.
    compiled_for_cpu = settings.offload or device.type == "cpu"
    named = os.environ.get("CXX" if compiled_for_cpu else "CC")
    usual = ("clang++", "g++") if compiled_for_cpu else ("gcc", "clang", "cc")
    compiler = named or (usual[0] if sys.platform == "darwin" else next(filter(shutil.which, usual), "g++"))
    lacking = None if shutil.which(compiler) else f"the compiler {compiler} is not found"
    if not lacking and not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        lacking = "Python.h is not found, which Python's development package has"
    if lacking:
        raise PluginError(
            f"training.optimiser.bits=8 compiles its kernels at the first step, and {lacking}",
            fix="install it (g++ and python3-dev on Debian), or set training.optimiser.bits=32",
        )


def _adamw(groups: list[dict[str, Any]], training: TrainingSection) -> torch.optim.Optimizer:
    if training.optimiser.bits == 32:
        return torch.optim.AdamW(groups, lr=training.rate, fused=True)
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of libraries that have nothing to do with optimisers
    try:
        adamw_8bit: Any = importlib.import_module("torchao.optim").AdamW8bit
    finally:
        logging.disable(silenced)
    made: torch.optim.Optimizer = adamw_8bit(groups, lr=training.rate)
    return made


def learning_rate(training: TrainingSection, step: int) -> float:
    """Return the learning rate of optimiser step ``step``, counted from 0.

    It rises linearly over ``warmup_steps``, so that the first step already learns; then it stays, or falls along a
    line or half a cosine that would reach zero at ``steps``.
    """
    if step < training.warmup_steps:
        return training.rate * (step + 1) / (training.warmup_steps + 1)
    left = max(1, training.steps - training.warmup_steps)
    progress = min(1.0, (step - training.warmup_steps) / left)
    if training.schedule == "linear":
        return training.rate * (1.0 - progress)
    if training.schedule == "cosine":
        return training.rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return training.rate


def recommended_rate(parameters: int, *, adapter: bool = False) -> float:
    """The peak learning rate of AdamW for a model of so many ``parameters``, those under an ``adapter`` included.

    Between the sizes for which a rate is known, the logarithm of the rate goes in a straight line over the logarithm of
    the size; outside of them it stays that of the nearest. It is rounded to two significant digits.
    """
    size = min(max(float(parameters), _KNOWN[0][0]), _KNOWN[-1][0])
    for (small, before), (large, after) in pairwise(_KNOWN):
        if size <= large:
            share = math.log(size / small) / math.log(large / small)
            rate = before * (after / before) ** share
            return float(f"{rate * (_ADAPTER if adapter else 1.0):.1e}")
    raise AssertionError("a size is clipped to the known ones")


def with_rate(training: TrainingSection, parameters: int) -> TrainingSection:
    """``training`` with a number for a learning rate that is `auto`, for a model of so many ``parameters``."""
    if training.learning_rate != "auto":
        return training
    rate = recommended_rate(parameters, adapter=training.lora is not None)
    return training.model_copy(update={"learning_rate": rate})
