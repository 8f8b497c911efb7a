"""The learner: owns the weights and the optimiser, and turns groups of episodes into updates.

A step, on one page::

    batch  = collect(groups)          paths of ids, loss terms with advantages and weights
    passes = lay out the batch        bins of the forest, or padded rows
    accumulate the gradient           forward and backward, pass by pass
    clip, AdamW, version + 1
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from agentrl.algorithms.algorithm import Algorithm
from agentrl.algorithms.batch import Batch, collect
from agentrl.config.models import TrainingSection
from agentrl.errors import ConfigError, one_line
from agentrl.inference.model_folder import no_progress_bars
from agentrl.learner import forest, rows
from agentrl.learner.dtype import stored_dtype
from agentrl.learner.folder import save_model, write_state
from agentrl.learner.gradient import accumulate_gradient
from agentrl.learner.metrics import batch_metrics
from agentrl.learner.optimiser import Optimiser
from agentrl.learner.passes import Pass, check_lengths
from agentrl.learner.policy import Policy
from agentrl.learner.probe import probe_forest
from agentrl.learner.weights import LearnerWeights
from agentrl.processors import find_device
from agentrl.rollout.contract import Group

if TYPE_CHECKING:
    from agentrl.inference.contract import Weights

__all__ = ["Learner"]

STATE = "learner.pt"


class Learner:
    """Trains the model in ``folder``. Not thread-safe: one step at a time."""

    def __init__(self, folder: Path, training: TrainingSection, algorithm: Algorithm, seed: int) -> None:
        """Load the model and probe whether it takes the forest.

        Raises ``ConfigError`` for a device that is not there, or a folder that is no causal language model.
        """
        torch.manual_seed(seed)
        self._source = folder
        self._training = training
        self._algorithm = algorithm
        device = find_device(training.device, "training.device")
        model = _load(folder, device)
        self._dtype = stored_dtype(folder)
        self.rows_because = probe_forest(model)
        """Why the model is trained on padded rows; ``None`` where it takes the forest."""
        self._policy = Policy(model, autocast=_autocast(training.precision, device))
        self._optimiser = Optimiser(model.parameters(), training)
        self.version = 0
        """How many steps made the weights."""

    @property
    def model(self) -> PreTrainedModel:
        """The model with the weights under training."""
        return self._policy.model

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Update the weights once from ``groups``; returns metrics by name.

        Where nothing can be learned, no episode being better than another of its group, the weights and the
        optimiser's moments stay as they are (``policy/updated`` is 0); the step counts all the same, and
        ``version`` and the learning rate go on with it.
        Raises ``RunError`` for an episode longer than a pass, a pass that does not fit the device's memory, or
        gradients that stay infinite.
        """
        started = time.perf_counter()
        batch = collect(groups, self._algorithm)
        passes = self._lay_out(batch)
        packed = time.perf_counter()
        metrics = batch_metrics(batch, self.version) | self._size(batch, passes)
        metrics |= accumulate_gradient(self._policy, self._algorithm, batch.terms, passes)
        computed = time.perf_counter()
        if passes:
            metrics |= self._optimiser.step(self.version, metrics["policy/loss"])
        self.version += 1
        return metrics | {
            "seconds/learner/pack": packed - started,
            "seconds/learner/gradient": computed - packed,
            "seconds/learner/update": time.perf_counter() - computed,
        }

    def weights(self) -> Weights:
        """A view of the current weights, valid until the next step."""
        return LearnerWeights(self.version, self.model, self._source)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model, tokenizer included, into ``folder``, which is made where it is missing.

        The weights are written in the dtype that the model came in, which training in float32 does not change. Raises
        ``RunError`` where a file cannot be written; what has been written by then stays.
        """
        save_model(self.model, self._source, folder, self._dtype)

    def save_state(self, folder: Path) -> None:
        """Write into ``folder`` what beside the weights a run needs to go on as if it had never stopped.

        Raises ``RunError`` where it cannot be written.
        """
        state = {"version": self.version, "optimiser": self._optimiser.state_dict(), "random": torch.get_rng_state()}
        if self._dtype != torch.float32:
            state["masters"] = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        write_state(state, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Take up what ``save_state`` wrote, beside the weights that the learner was built from.

        Of a model that comes in 16 bits the state holds the weights in 32, which are those that training goes on with.
        """
        state: dict[str, Any] = torch.load(folder / STATE, map_location=self._policy.device, weights_only=True)
        self.version = state["version"]
        self._optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "masters" in state:
                    parameter.copy_(state["masters"][name])
        torch.set_rng_state(state["random"].cpu())

    def _lay_out(self, batch: Batch) -> list[Pass]:
        """Passes over the paths that can be learned from, then over the others, which need no gradient."""
        check_lengths([len(path) for path in batch.paths], self._training.tokens_per_batch, batch.episodes)
        lay_out = forest.lay_out if self.rows_because is None else rows.stack
        terms, learned = batch.terms, np.zeros(len(batch.paths), dtype=np.bool_)
        learned[terms.path[terms.advantage != 0.0]] = True
        passes: list[Pass] = []
        for chosen in (learned, ~learned):
            paths = [path for path, taken in zip(batch.paths, chosen, strict=True) if taken]
            number = np.cumsum(chosen) - 1
            kept = np.flatnonzero(chosen[terms.path])
            made = lay_out(paths, number[terms.path[kept]], terms.depth[kept], self._training.tokens_per_batch)
            passes += [replace(work, terms=kept[work.terms]) for work in made]
        return passes

    def _size(self, batch: Batch, passes: Sequence[Pass]) -> dict[str, float]:
        padded = rows.padded_size([len(path) for path in batch.paths], self._training.tokens_per_batch)
        return {
            "tokens/forest": float(sum(work.ids.size for work in passes)),
            "tokens/rows": float(padded),
            "learner/passes": float(len(passes)),
        }


def _load(folder: Path, device: torch.device) -> PreTrainedModel:
    try:
        with no_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model folder {folder} does not load as a causal language model: {one_line(error)}",
            fix="name a folder that `save_pretrained` wrote",
        ) from error
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the folder's own may not be savable
    model.to(device)  # type: ignore[arg-type]
    return model


def _autocast(precision: str, device: torch.device) -> bool:
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
