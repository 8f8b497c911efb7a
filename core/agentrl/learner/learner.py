"""The learner: owns the weights and the optimiser, and turns a batch into new weights.

A step, on one page::

    passes = pack the batch           bins of the forest, or padded rows
    for each pass                     score its targets, Σ weight · importance · objective, backward
    clip, AdamW, version + 1

It knows no group, episode or reward: a batch says what is trained and how much, and two functions make the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from agentrl.config.models import TrainingSection
from agentrl.errors import ConfigError, RunError, one_line
from agentrl.inference.contract import TensorDigest
from agentrl.inference.digests import tensor_digest
from agentrl.inference.model_folder import no_progress_bars
from agentrl.learner.contract import Correction, Objective, ObjectiveTerms, Scores, Targets, TrainBatch
from agentrl.learner.folder import read_state, save_model, stored_dtype, write_state
from agentrl.learner.optimiser import Optimiser
from agentrl.learner.packing import Pass, check_batch, check_lengths, check_targets, pack, padded_size
from agentrl.learner.policy import Policy, PolicyMetrics, limited_threads
from agentrl.learner.probe import probe_forest
from agentrl.processors import find_device

if TYPE_CHECKING:
    from agentrl.learner.contract import Ints

__all__ = ["Learner", "LentWeights", "accumulate_gradient"]

STATE = "learner.pt"


class Learner:
    """Trains the model in ``folder``. Not thread-safe: one call at a time.

    ``correction`` and ``objective`` make the loss; see ``agentrl.learner.contract``.
    """

    def __init__(
        self, folder: Path, settings: TrainingSection, correction: Correction, objective: Objective, seed: int
    ) -> None:
        """Load the model, and probe whether it takes the forest.

        Raises ``ConfigError`` for a device that is not there, or a folder that holds no causal language model.
        """
        torch.manual_seed(seed)
        self._source = folder
        self._settings = settings
        self._correction = correction
        self._objective = objective
        device = find_device(settings.device, "training.device")
        model = _load(folder, device)
        self._dtype = stored_dtype(folder)
        self.rows_because = probe_forest(model)
        """Why the model is trained on padded rows; ``None`` where it takes the forest."""
        self._policy = Policy(model, autocast=_autocast(settings.precision, device))
        self._optimiser = Optimiser(model.parameters(), settings)
        self._lent: list[LentWeights] = []
        self.version = 0
        """How many steps made the weights."""

    @property
    def model(self) -> PreTrainedModel:
        """The model with the weights under training."""
        return self._policy.model

    def step(self, batch: TrainBatch) -> dict[str, float]:
        """Update the weights once from ``batch``; returns metrics by name.

        Where every advantage is 0, the weights and the optimiser's moments stay as they are (``policy/updated`` is 0);
        the step counts all the same, and ``version`` and the learning rate go on with it.

        Raises ``RunError`` for a path longer than a pass, a pass that does not fit the device's memory, or gradients
        that stay infinite; ``ValueError`` for a batch that contradicts itself; and ``RuntimeError`` while weights are
        lent.
        """
        self._refuse_while_lent("step")
        check_batch(batch)
        started = time.perf_counter()
        limit, lengths = self._settings.tokens_per_batch, [len(path) for path in batch.paths]
        check_lengths(lengths, limit, batch.labels)
        learned = np.flatnonzero(batch.advantage)
        passes = pack(batch.paths, batch.targets, limit, forest=self._policy.takes_forest, first=learned)
        packed = time.perf_counter()
        metrics = _batch_metrics(batch, self.version) | {
            "tokens/forest": float(sum(work.ids_RT.size for work in passes)),
            "tokens/rows": float(padded_size(lengths, limit)),
            "learner/passes": float(len(passes)),
        }
        metrics |= accumulate_gradient(self._policy, batch, passes, self._correction, self._objective)
        computed = time.perf_counter()
        if passes:
            metrics |= self._optimiser.step(self.version, metrics["policy/loss"])
        self.version += 1
        return metrics | {
            "seconds/learner/pack": packed - started,
            "seconds/learner/gradient": computed - packed,
            "seconds/learner/update": time.perf_counter() - computed,
        }

    def score(self, targets: Targets, paths: Sequence[Ints], *, exact: bool = False) -> Scores:
        """Score ``targets`` on ``paths`` under the current weights, without a gradient and without changing anything.

        For whoever needs log-probabilities before there is a batch: references, value estimates, comparisons with an
        engine. Computed in the precision that training computes in, or with ``exact`` in that of the weights. Raises
        ``RunError`` for a path longer than ``training.tokens_per_batch``, and ``ValueError`` for targets that
        contradict themselves.
        """
        check_targets(targets, paths)
        policy = self._policy.exact() if exact else self._policy
        return policy.score_paths(targets, paths, self._settings.tokens_per_batch)

    def lend(self, borrower: str) -> LentWeights:
        """Lend the weights to ``borrower``, whose name stands in error messages, until they are given back.

        ::

            with learner.lend("the inference engine") as weights:
                await backend.update_weights(weights)

        While weights are lent, ``step`` and ``load_state`` raise ``RuntimeError``. Any number of borrowers may have
        them at once.
        """
        lent = LentWeights(self._policy, self.version, self._source, borrower, self._lent.remove)
        self._lent.append(lent)
        return lent

    def _refuse_while_lent(self, what: str) -> None:
        if self._lent:
            borrowers = ", ".join(dict.fromkeys(lent.borrower for lent in self._lent))
            raise RuntimeError(
                f"the learner cannot {what} while its weights of version {self.version} are lent to {borrowers}: "
                "give them back first, with give_back() or by leaving the block of lend()"
            )

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model, tokenizer included, into ``folder``, which is made where it is missing.

        The weights are written in the dtype that the model came in, which training in float32 does not change. Raises
        ``RunError`` where a file cannot be written; what has been written by then stays.
        """
        save_model(self.model, self._source, folder, self._dtype)

    def save_state(self, folder: Path) -> None:
        """Write into ``folder`` what a run needs, beside the weights, to go on as if it had never stopped.

        Raises ``RunError`` where it cannot be written.
        """
        state = {"version": self.version, "optimiser": self._optimiser.state_dict(), "random": torch.get_rng_state()}
        if self._dtype != torch.float32:
            state["masters"] = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        write_state(state, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Take up what ``save_state`` wrote, beside the weights that the learner was built from.

        Of a model that comes in 16 bits the state holds the weights in 32, which are those that training goes on with.
        Raises ``RunError`` for a file that cannot be read, and ``RuntimeError`` while weights are lent.
        """
        self._refuse_while_lent("load a state")
        state = read_state(folder / STATE, self._policy.device)
        self.version = state["version"]
        self._optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "masters" in state:
                    parameter.copy_(state["masters"][name])
        torch.set_rng_state(state["random"].cpu())

    def go_back(self, folder: Path, version: int) -> None:
        """Take up the weights and the optimiser's state of the checkpoint in ``folder``, as policy version ``version``.

        The version goes on, since tokens may have been sampled under the one that the weights had before. Raises
        ``ConfigError`` for a folder that does not load, and ``RuntimeError`` while weights are lent.
        """
        self._refuse_while_lent("go back")
        saved = dict(_load(folder, torch.device("cpu")).named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved[name])
        self.load_state(folder)
        self.version = version


class LentWeights:
    """The weights of one policy version while somebody has them: an ``agentrl.inference.contract.Weights``.

    A view, not a copy. Leaving its ``with`` block, or ``give_back``, ends it; after that everything but ``version``
    raises ``RuntimeError``.
    """

    def __init__(
        self,
        policy: Policy,
        version: int,
        source: Path,
        borrower: str,
        on_return: Callable[[LentWeights], None] = lambda lent: None,
    ) -> None:
        """``source`` is the folder whose tokenizer goes with them; ``on_return`` is called when they are back."""
        self.version = version
        """Number of optimiser steps that made the weights."""
        self.borrower = borrower
        """Who has them, in words."""
        self._policy = policy
        self._source = source
        self._on_return = on_return
        self._returned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def give_back(self) -> None:
        """End the loan. Safe to call twice."""
        if not self._returned:
            self._returned = True
            self._on_return(self)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of every parameter; one that is tied to others comes once, under its first name.

        The tensors are the learner's own memory: copy what is needed after the loan.
        """
        for name, parameter in self._model().named_parameters():
            self._model()  # they may have been given back since the last tensor
            yield name, parameter.detach()

    def save(self, folder: Path) -> None:
        """Write a model that ``AutoModelForCausalLM`` loads, tokenizer files included, into ``folder``.

        The folder is made where it is missing. Raises ``RunError`` where a file cannot be written; what has been
        written by then stays.
        """
        save_model(self._model(), self._source, folder)

    def logprobs(self, ids: Sequence[int]) -> Sequence[float]:
        """Return the natural log-probabilities of ``ids[1:]`` at temperature 1, in the precision of the weights."""
        self._model()
        path = np.asarray(ids, dtype=np.int64)
        if len(path) < 2:
            return ()
        count = len(path) - 1
        targets = Targets(np.zeros(count, dtype=np.int64), np.arange(count), path[1:], np.ones(count))
        logprobs: list[float] = self._policy.exact().score_paths(targets, [path], len(path)).logprob.tolist()
        return logprobs

    def digests(self, dtypes: Mapping[str, str]) -> Mapping[str, TensorDigest]:
        """Return the digests of the parameters that ``dtypes`` names, each as it is after ``tensor.to(dtype)``.

        ``dtypes`` has torch's names without the prefix. A parameter that is tied to others goes by any of its names,
        and is read once for each type; a name that the model does not have is left out.
        """
        found: dict[tuple[int, str], TensorDigest] = {}
        named: dict[str, TensorDigest] = {}
        for name, parameter in self._model().named_parameters(remove_duplicate=False):
            if name not in dtypes:
                continue
            self._model()
            key = id(parameter), dtypes[name]
            if key not in found:
                cast = parameter.detach().to(getattr(torch, dtypes[name]))
                found[key] = TensorDigest(dtypes[name], tuple(parameter.shape), tensor_digest(cast))
            named[name] = found[key]
        return named

    def _model(self) -> PreTrainedModel:
        if self._returned:
            raise RuntimeError(
                f"{self.borrower} used the weights of version {self.version} after giving them back: copy what is "
                "needed of them before (a backend has them until its update_weights returns)"
            )
        return self._policy.model


def accumulate_gradient(
    policy: Policy, batch: TrainBatch, passes: Sequence[Pass], correction: Correction, objective: Objective
) -> dict[str, float]:
    """Add the gradient of the loss to the policy's weights; returns the ``policy/`` metrics of the step.

    The loss is ``Σ weight · importance · objective`` over all terms. Weights are shares of the whole step, so however
    the terms are spread over passes, the sum of their gradients is that of one pass. Passes in which every advantage is
    0 are computed for the metrics alone. Raises ``RunError`` where a pass needs more memory than the device has.
    """
    metrics = PolicyMetrics()
    for work in passes:
        learns = bool(np.any(batch.advantage[work.targets_N]))
        try:
            with limited_threads(policy.size, work.ids_RT.size), torch.set_grad_enabled(learns):
                _backward(policy, batch, work, correction, objective, metrics)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"a pass of {work.ids_RT.size} tokens does not fit the memory of {policy.device}",
                fix="lower training.tokens_per_batch",
            ) from error
    return metrics.result()


def _backward(
    policy: Policy,
    batch: TrainBatch,
    work: Pass,
    correction: Correction,
    objective: Objective,
    metrics: PolicyMetrics,
) -> None:
    scores = policy.score(work, batch.targets)
    learner_N = scores.logprob_N.detach()

    def column(values: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(values[work.targets_N]).to(learner_N)

    behaviour_N = column(batch.logprob)
    anchor = correction(learner_N, behaviour_N)
    made = objective(
        ObjectiveTerms(
            logprob=scores.logprob_N,
            anchor=anchor.logprob,
            advantage=column(batch.advantage),
            call=torch.from_numpy(batch.call[work.targets_N]).to(learner_N.device),
            extra={name: column(values) for name, values in batch.extra.items()},
        )
    )
    loss = (made.loss * anchor.weight * column(batch.weight)).sum()
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]
    log_ratio_N = learner_N - behaviour_N
    metrics.add(loss=loss.detach(), log_ratio_N=log_ratio_N, entropy_N=scores.entropy_N, clipped_N=made.clipped)


def _batch_metrics(batch: TrainBatch, version: int) -> dict[str, float]:
    """How many tokens are trained, and by how many steps older than ``version`` they are."""
    metrics = {"tokens/trained": float(len(batch.version))}
    if len(batch.version):
        age_N = version - batch.version
        metrics |= {"staleness/mean": float(age_N.mean()), "staleness/max": float(age_N.max())}
    return metrics


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
