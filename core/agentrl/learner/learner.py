"""The learner: owns the weights and the optimiser, and turns a batch into new weights.

A step, on one page::

    for each update of the batch      there is one, unless it names several
        passes = pack its share       bins of the forest, or padded rows
        for each pass                 score its targets, add up their loss, backward
        clip, AdamW
    version + 1

It knows no group, episode or reward: a batch says what is trained and how much, and the parts of a ``Loss`` make it.

Where several ranks train, each does the same with its share of the passes and of the weights: all call the same methods
with the same arguments in the same order, and get the same results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentrl.config.training import TrainingSection
from agentrl.inference.adapter_folder import base_of, is_adapter
from agentrl.inference.model_folder import count_parameters
from agentrl.learner.adapters import LoraAdapter
from agentrl.learner.contract import Loss, Scores, StepResult, Targets, TrainBatch
from agentrl.learner.folder import (
    has_room_in_float32,
    load_model,
    precision_on,
    read_state,
    save_adapter,
    save_model,
    stored_dtype,
    write_state,
)
from agentrl.learner.gradient import accumulate_gradient, is_learned
from agentrl.learner.lending import LentWeights
from agentrl.learner.masters import Masters
from agentrl.learner.optimiser import Optimiser, check_optimiser, with_rate
from agentrl.learner.packing import check_batch, check_lengths, check_targets, padded_size
from agentrl.learner.policy import Policy
from agentrl.learner.probe import probe_forest
from agentrl.learner.ranks import Ranks
from agentrl.learner.recompute import recompute_layers
from agentrl.learner.shared_weights import SharedMemory, Sharing
from agentrl.learner.updates import cut_updates, joined
from agentrl.learner.value import ValueHead
from agentrl.machine import find_device

if TYPE_CHECKING:
    from agentrl.inference.sharing.contract import Pause
    from agentrl.learner.aside import Aside
    from agentrl.learner.contract import Floats, Ints

__all__ = ["PARTS", "STATE", "Learner"]

STATE = "learner.pt"
"""The file of a learner's state."""
PARTS = "learner"
"""The folder of one that several ranks have saved."""
SMALL = 1 << 30
"""Bytes of a model in float32 up to which all ranks of a machine load it at once."""


class Learner:
    """Trains the model in ``folder``. Not thread-safe: one call at a time.

    ``loss`` holds the parts that make the loss; see ``agentrl.learner.contract``.
    """

    def __init__(
        self, folder: Path, settings: TrainingSection, loss: Loss, seed: int, ranks: Ranks | None = None
    ) -> None:
        """Load the model, and probe whether it takes the forest. Without ``ranks`` the learner is alone.

        Raises ``ConfigError`` for a device that is not there, a folder that holds no causal language model, and one
        that ``ranks`` cannot share.
        """
        torch.manual_seed(seed)
        self._source = folder
        self._loss = loss
        self._ranks = ranks = Ranks.alone() if ranks is None else ranks
        device = ranks.device or find_device(settings.device, "training.device")
        check_optimiser(settings.optimiser, device, together=ranks.together)
        with ranks.guarding("load the model"):
            self._policy, self._settings = self._load(settings, device)
        settings = self._settings
        if settings.gradient_checkpointing:
            recompute_layers(self.model)
        self._optimiser = Optimiser(self._masters, settings, ranks)
        factor = None if loss.critic is None else loss.critic.learning_rate_factor
        self._value_head = None if factor is None else ValueHead(self.model, settings, factor, ranks)
        self._policy.value_head = self._value_head
        self._aside: Aside | None = None
        """Has the states that were set aside, once some have been."""
        self._device = device
        self._lent: list[LentWeights] = []
        self._sharing = Sharing()
        self.version = 0
        """How many steps made the weights."""
        if ranks.rank:
            torch.manual_seed(seed + ranks.rank)  # An adapter drops other inputs on each rank.

    def _load(self, settings: TrainingSection, device: torch.device) -> tuple[Policy, TrainingSection]:
        """Load the model, probe it, and place it on the device or spread it; returns it and settings with a rate.

        The probe is sharpest in float32, for which it takes the whole model on one device.
        """
        folder, ranks = self._source, self._ranks
        dtype, offload = precision_on(device, settings.precision), settings.optimiser.offload
        self._masters = Masters()
        with _in_turn(folder, ranks):
            model = load_model(folder if settings.lora is None else base_of(folder))
            settings = with_rate(settings, model.num_parameters())
            probes_exactly = not offload and has_room_in_float32(model, device)
            if probes_exactly:
                model.to(device)  # type: ignore[arg-type]
            self._dtype = stored_dtype(folder)
            self.adapter = None if settings.lora is None else LoraAdapter(model, settings.lora)
            """What is trained in the place of the model's weights, where it is an adapter."""
            if self.adapter is not None and is_adapter(folder):
                self.adapter.load(folder)
            if probes_exactly:
                self.rows_because = probe_forest(model)
                """Why the model is trained on padded rows; ``None`` where it takes the forest."""
            self._masters.take(model, device, dtype, offload=offload, ranks=ranks)
        if not probes_exactly:
            self.rows_because = probe_forest(model, self._masters.shards)
        policy = Policy(model, adapter=self.adapter, shards=self._masters.shards)
        if self.adapter is not None:
            self.adapter.whole = policy.whole
        return policy, settings

    @property
    def model(self) -> PreTrainedModel:
        """The model with the weights under training."""
        return self._policy.model

    @property
    def merges_at_start(self) -> bool:
        """Whether the model came as an adapter and its base, which an engine may have merged in its own way."""
        return self.version == 0 and is_adapter(self._source)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a block in which ``score`` is that of the model before an adapter was trained over it.

        No ``step`` may be taken within. Raises ``ValueError`` where all weights are trained.
        """
        return self._policy.without_adapter()

    def step(self, batch: TrainBatch) -> StepResult:
        """Make new weights from ``batch``, by one update or as many as it names; returns metrics, and scores of terms.

        Where no term has a gradient, as where every advantage is 0 and nothing is added by a penalty or a critic, the
        weights and the optimiser's moments stay as they are (``policy/updated`` is 0); the step counts all the same,
        and ``version`` and the learning rate go on with it. Several updates have the same learning rate, and the
        metrics are means over all terms.

        Raises ``RunError`` for a path longer than a pass, a pass that does not fit the device's memory, or gradients
        that stay infinite; ``ValueError`` for a batch that contradicts itself; and ``RuntimeError`` while weights are
        lent.
        """
        self._refuse_while_lent("step")
        self.bring_back()
        with self._ranks.guarding("take a step"):
            return self._step(batch)

    def _step(self, batch: TrainBatch) -> StepResult:
        check_batch(batch)
        limit, lengths = self._settings.pass_tokens, [len(path) for path in batch.paths]
        check_lengths(lengths, limit, batch.labels)
        metrics = _batch_metrics(batch, self.version) | {"tokens/rows": float(padded_size(lengths, limit))}
        updates = cut_updates(batch)
        # From the first update to the last the weights are those of no version.
        with self._sharing.changing() as hold:
            if len(updates) == 1:
                made = self._update(batch, None, hold)
            else:
                before = self._policy.score_paths(batch.targets, batch.paths, limit)
                parts = [(self._update(part, before.logprob[terms], hold), terms) for terms, part in updates]
                made = joined(parts, before)
            hold()
            self.version += 1
        metrics |= made.metrics | {"learner/updates": float(len(updates))}
        return StepResult(metrics | self._slowest(metrics), made.terms)

    def _slowest(self, metrics: dict[str, float]) -> dict[str, float]:
        """The seconds of a step, those of the rank that took longest."""
        seconds = {name: value for name, value in metrics.items() if name.startswith("seconds/")}
        of_ranks = self._ranks.gather(seconds)
        return {name: max(each[name] for each in of_ranks) for name in seconds}

    def _update(self, batch: TrainBatch, before: Floats | None, hold: Callable[[], None]) -> StepResult:
        """One update of the weights; ``before`` holds the log-probabilities under those that the step began with.

        ``hold`` is called when they begin to change.
        """
        started = time.perf_counter()
        first = np.flatnonzero(is_learned(batch, self._loss))
        passes, own = self._policy.lay_out(batch.paths, batch.targets, self._settings.pass_tokens, first=first)
        packed = time.perf_counter()
        metrics = {
            "tokens/forest": float(sum(work.ids_RT.size for work in passes)),
            "learner/passes": float(len(passes)),
        }
        with self._policy.dropping():
            made, terms = accumulate_gradient(self._policy, batch, own, self._loss, version=self.version, before=before)
            metrics |= made
        computed = time.perf_counter()
        if passes:
            hold()
            metrics |= self._optimiser.step(self.version, metrics["policy/loss"])
            if self._value_head is not None:
                metrics |= self._value_head.step(metrics["policy/learning_rate"])
        metrics |= {
            "seconds/learner/pack": packed - started,
            "seconds/learner/gradient": computed - packed,
            "seconds/learner/update": time.perf_counter() - computed,
        }
        return StepResult(metrics, terms)

    def score(self, targets: Targets, paths: Sequence[Ints]) -> Scores:
        """Score ``targets`` on ``paths`` under the current weights, without a gradient and without changing anything.

        For whoever needs log-probabilities before there is a batch: references, value estimates, comparisons with an
        engine. Computed in the precision that training computes in. Raises ``RunError`` for a path longer than
        ``training.tokens_per_batch``, and ``ValueError`` for targets that contradict themselves.
        """
        check_targets(targets, paths)
        with self._ranks.guarding("score"):
            return self._policy.score_paths(targets, paths, self._settings.pass_tokens)

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

    def set_aside(self) -> None:
        """Keep in the CPU's memory what only ``step`` needs, until that, or ``bring_back``, is called.

        Those are the optimiser's moments and the float32 masters. The weights stay, and may be lent and saved.
        """
        from agentrl.learner.aside import Aside  # Few runs do so.

        if self._aside is None:
            heads = () if self._value_head is None else (self._value_head,)
            states = [self._optimiser.states, *(each.states for each in heads)]
            self._aside = Aside(self._masters, lambda: [each() for each in states], self._device)
        self._aside.set_aside()

    def bring_back(self) -> None:
        """Bring back to the device what ``set_aside`` has moved, with the same bits."""
        if self._aside is not None:
            self._aside.bring_back()

    def share(self, borrower: str, pause: Pause) -> SharedMemory:
        """Share the memory of the weights with ``borrower``, an engine that ``pause`` holds still while they change.

        That is during ``step``, from its first update to its last, ``go_back`` and ``load_state``. Under an adapter the
        model is shared that it is trained over, which never changes; nobody is held still then. Raises ``RuntimeError``
        where they are shared already, or in several processes. See ``agentrl.inference.sharing.contract``.
        """
        if self._masters.shards is not None:
            raise RuntimeError("the weights are spread over several processes, and cannot be shared with an engine")
        turns = self.adapter is not None or self._settings.optimiser.bits == 32  # In 8 bits AdamW goes by rows.
        memory = SharedMemory(self._policy, self._source, lambda: self.version, borrower, pause, turns=turns)
        if self.adapter is None:
            self._sharing.begin(memory)
        return memory

    def _refuse_while_lent(self, what: str) -> None:
        if self._lent:
            borrowers = ", ".join(dict.fromkeys(lent.borrower for lent in self._lent))
            raise RuntimeError(
                f"the learner cannot {what} while its weights of version {self.version} are lent to {borrowers}: "
                "give them back first, with give_back() or by leaving the block of lend()"
            )

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model, tokenizer included, into ``folder``, which is made where it is missing.

        The weights are written in the dtype that the model came in, rounded from their float32 masters. Of an adapter
        it is the folder of an adapter, in float32, which names the folder of its base. Rank 0 writes. Raises
        ``RunError`` where a file cannot be written; what has been written by then stays.
        """
        shards = self._masters.shards
        with self._ranks.guarding("save"):
            if self.adapter is not None:
                base, adapter, exact = base_of(self._source), self.adapter, self._exact()
                self._ranks.first(lambda: save_adapter(adapter, base, folder, self._source, exact))
            elif shards is None:
                save_model(self.model, self._source, folder, self._dtype, self._masters.tensors())
            else:
                from agentrl.learner.model_writer import write_spread

                tensors = ((name, self._ranks.whole(weight, self._dtype)) for name, weight in shards.weights().items())
                write_spread(self.model, tensors, self._source, folder, self._ranks, self._dtype)

    def _exact(self) -> dict[str, Tensor]:
        """The float32 values of an adapter, whole."""
        shards = self._masters.shards
        if shards is None:
            return self._masters.tensors()
        return {name: self._ranks.whole(weight) for name, weight in shards.weights().items()}

    def save_state(self, folder: Path) -> None:
        """Write into ``folder`` what a run needs, beside the weights, to go on as if it had never stopped.

        It is the file ``STATE``, or of several ranks the folder ``PARTS``, into which each writes what it has. Raises
        ``RunError`` where it cannot be written.
        """
        state: dict[str, Any] = {"version": self.version}
        if self._value_head is not None:
            state["value_head"] = self._value_head.state_dict()
        exact = self._dtype != torch.float32 and self.adapter is None
        if self._masters.shards is not None:
            from agentrl.learner.spread_state import save_spread

            with self._ranks.guarding("save its state"):
                states = self._ranks.gather(torch.get_rng_state().tolist())
                state["random"] = [torch.tensor(each, dtype=torch.uint8) for each in states]
                save_spread(state, self._masters, self._optimiser, folder / PARTS, exact=exact)
            return
        state |= {"optimiser": self._optimiser.state_dict(), "random": torch.get_rng_state()}
        if exact:
            state["masters"] = self._masters.tensors()
        write_state(state, folder / STATE)

    def load_state(self, folder: Path) -> None:
        """Take up what ``save_state`` wrote, on as many ranks or others, beside the weights that the learner was built
        from.

        Of a model that comes in 16 bits the state holds the weights in 32, which are those that training goes on with.
        Raises ``RunError`` for a file that cannot be read, and ``RuntimeError`` while weights are lent.
        """
        self._refuse_while_lent("load a state")
        self.bring_back()
        with self._sharing.changing() as hold:
            hold()
            with self._ranks.guarding("load a state"):
                state = self._read_state(folder)
            self.version = state["version"]
        if self._value_head is not None and "value_head" in state:  # A run may have got its critic since.
            self._value_head.load_state_dict(state["value_head"])
        random = state["random"] if isinstance(state["random"], list) else [state["random"]]
        if self._ranks.rank < len(random):
            torch.set_rng_state(random[self._ranks.rank])

    def _read_state(self, folder: Path) -> dict[str, Any]:
        """Take up the optimiser's state and the masters, and return the rest."""
        shards = self._masters.shards
        if shards is not None or (folder / PARTS).is_dir():
            from agentrl.learner.spread_state import load_spread, load_whole

            if (folder / PARTS).is_dir():
                return load_spread(folder / PARTS, self._masters, self._optimiser, self._ranks)
        state = read_state(folder / STATE, in_place=shards is not None)
        if "masters" in state:
            self._masters.load(state["masters"])
        if shards is None:
            self._optimiser.load_state_dict(state["optimiser"])
        else:
            load_whole(state["optimiser"], self._masters, self._optimiser)
        return state

    def go_back(self, folder: Path, version: int) -> None:
        """Take up the weights and the optimiser's state of the checkpoint in ``folder``, as policy version ``version``.

        The version goes on, since tokens may have been sampled under the one that the weights had before. Raises
        ``ConfigError`` for a folder that does not load, and ``RuntimeError`` while weights are lent.
        """
        self._refuse_while_lent("go back")
        self.bring_back()
        with self._sharing.changing() as hold:
            hold()
            with self._ranks.guarding("go back"), _in_turn(folder, self._ranks):
                if self.adapter is not None:
                    self._masters.load(self.adapter.read(folder))
                else:
                    self._masters.load(dict(load_model(folder).named_parameters()))
            self.load_state(folder)
            self.version = version


def _in_turn(folder: Path, ranks: Ranks) -> AbstractContextManager[None]:
    """A block in which one rank of each machine at a time has the whole model in ``folder``, unless it is small."""
    if ranks.size == 1 or 4 * count_parameters(folder) < SMALL:
        return nullcontext()
    return ranks.in_turn()


def _batch_metrics(batch: TrainBatch, version: int) -> dict[str, float]:
    """How many tokens are trained, and by how many steps older than ``version`` they are."""
    metrics = {"tokens/trained": float(len(batch.version))}
    if len(batch.version):
        age_N = version - batch.version
        metrics |= {"staleness/mean": float(age_N.mean()), "staleness/max": float(age_N.max())}
    if "return" in batch.extra and "value" in batch.extra and len(batch.version):
        metrics["value/mean"] = float(batch.extra["value"].mean())
        spread = float(batch.extra["return"].var())
        if spread > 0.0:
            left = float((batch.extra["return"] - batch.extra["value"]).var())
            metrics["value/explained_variance"] = 1.0 - left / spread
    return metrics
