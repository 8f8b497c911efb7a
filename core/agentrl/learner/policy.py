"""The policy under training: a Hugging Face model that scores the targets of a pass, and what a step reports of it.

Only positions that predict a target meet the vocabulary, and a distribution that several targets share is computed
once. One exponential over the vocabulary serves the log-probabilities, the entropies and the gradient.

Axes: R rows of a pass, T positions of a row, C columns of a pass that predict anything, N targets, U distinct
distributions, E hidden size, V vocabulary, M masks, A bytes of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agentrl.learner.attention import NAME, ForestAttention
from agentrl.learner.contract import Scores, Targets
from agentrl.learner.packing import IDLE, Idle, Pass, pack
from agentrl.learner.ranks import Ranks
from agentrl.learner.vocabulary import Logits, score_tokens
from agentrl.threads import ThreadLimit

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentrl.learner.adapters import LoraAdapter
    from agentrl.learner.contract import Floats, Ints
    from agentrl.learner.shards import Shards

__all__ = ["Policy", "PolicyMetrics", "TensorScores"]

MAX_LOGITS = 1 << 26
"""Logits held at once. More are computed in chunks, and again in the backward pass, instead of being kept."""


class TensorScores(NamedTuple):
    """Scores of one pass, on the model's device."""

    logprob_N: Tensor
    """Natural log-probability of each target's token, with a gradient."""
    entropy_N: Tensor
    """Entropy in nats of the distribution that it is scored under, with one; it costs nothing where it is not used."""
    value_N: Tensor | None = None
    """What the value head expects at the position that predicts it, with one; ``None`` without a head."""


class Policy:
    """``model`` in evaluation mode, computed in the type of its weights."""

    def __init__(
        self, model: PreTrainedModel, *, adapter: LoraAdapter | None = None, shards: Shards | None = None
    ) -> None:
        """``adapter`` is that of ``model``, where one is trained in the place of its weights.

        ``shards`` are those of the model, where it is spread over ranks; all of them call the same methods then.
        """
        self.model = model
        self.adapter = adapter
        self.shards = shards
        self.value_head: Callable[[Tensor], Tensor] | None = None
        """From hidden states (states, size) to values (states,), where there is one."""
        self.model.train(False)
        self.size: int = model.num_parameters()
        """How many parameters the model has."""
        self.threads = ThreadLimit(self.size)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def ranks(self) -> Ranks:
        """Who computes with this model together."""
        return Ranks.alone() if self.shards is None else self.shards.ranks

    @property
    def takes_forest(self) -> bool:
        """Whether the model has been switched to forest attention; else it takes padded rows."""
        return bool(self.model.config._attn_implementation == NAME)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a block in which the model computes as it did before an adapter was trained over it.

        Raises ``ValueError`` where none is.
        """
        if self.adapter is None:
            raise ValueError("all weights of the model are trained: there is no adapter to leave out")
        return self.adapter.disabled()

    def dropping(self) -> AbstractContextManager[None]:
        """Return a block in which an adapter drops the share of its inputs that its settings say."""
        if self.adapter is None:
            return nullcontext()
        _ = self._head  # found by forwards, in which nothing may be dropped
        return self.adapter.dropping()

    def lay_out(
        self,
        paths: Sequence[Ints],
        targets: Targets,
        tokens_per_batch: int,
        *,
        first: Ints | None = None,
        forest: bool | None = None,
    ) -> tuple[list[Pass], list[Pass]]:
        """Return the passes that score ``targets`` on ``paths``, and which of them this rank computes.

        ``first`` is as of ``pack``, and ``forest`` says how paths are laid out, by default as the model takes them.
        Raises ``RunError`` for a path longer than a pass.
        """
        forest = self.takes_forest if forest is None else forest
        if self.ranks.size == 1:
            passes = pack(paths, targets, tokens_per_batch, forest=forest, first=first)
            return passes, passes
        from agentrl.learner.sharing import Costs, share

        costs = Costs.of(self.model)
        return share(paths, targets, tokens_per_batch, forest=forest, first=first, ranks=self.ranks, costs=costs)

    @torch.no_grad()
    def score_paths(
        self, targets: Targets, paths: Sequence[Ints], tokens_per_batch: int, *, forest: bool | None = None
    ) -> Scores:
        """Score all ``targets`` on ``paths``, in passes of at most ``tokens_per_batch`` tokens, without a gradient.

        ``forest`` says how the paths are laid out, by default as the model takes them. Raises ``RunError`` for a path
        longer than a pass.
        """
        columns = np.zeros((3, len(targets.token)))
        for work in self.lay_out(paths, targets, tokens_per_batch, forest=forest)[1]:
            with self.threads.of(work.ids_RT.size):
                scores = self.score(work, targets)
            if isinstance(work, Idle):
                continue
            for column, made_N in zip(columns, scores, strict=True):
                if made_N is not None:
                    column[work.targets_N] = made_N.double().cpu().numpy()
        logprob, entropy, value = self.ranks.add_up(torch.from_numpy(columns)).numpy()
        return Scores(logprob, entropy, None if self.value_head is None else value)

    def score(self, work: Pass, targets: Targets) -> TensorScores:
        """Score the targets of ``work``, each at its own temperature and under its own mask.

        An ``Idle`` pass scores a target of its own.
        """
        targets = IDLE if isinstance(work, Idle) else targets
        if self.shards is None:
            return self._scored(work, targets)
        _ = self._head  # found by forwards of its own
        return self.shards.through(partial(self._scored, work, targets))

    def _scored(self, work: Pass, targets: Targets) -> TensorScores:
        columns_C, column_N = np.unique(work.position_N, return_inverse=True)
        temperatures, kind_N = np.unique(targets.temperature[work.targets_N], return_inverse=True)
        # one distribution for each position, temperature and mask, however many tokens were drawn from it
        drawn_N = (work.row_N * len(columns_C) + column_N) * len(temperatures) + kind_N
        masks = 1
        if targets.masks is not None and targets.mask is not None:
            masks = len(targets.masks) + 1
            drawn_N = drawn_N * masks + targets.mask[work.targets_N] + 1
        wanted_U, distribution_N = np.unique(drawn_N, return_inverse=True)
        mask_U = wanted_U % masks - 1
        site_U, temperature_U = np.divmod(wanted_U // masks, len(temperatures))
        distributions = self._distributions(work, columns_C, site_U, temperatures[temperature_U])
        if np.any(mask_U >= 0):
            distributions = distributions._replace(masks_MA=self._tensor(targets.masks), mask_U=self._tensor(mask_U))
        distributions = distributions._replace(weight_VE=self._matrix)
        chosen_N = self._tensor(distribution_N)
        scores = _score(distributions, chosen_N, self._tensor(targets.token[work.targets_N]))
        if self.value_head is None:
            return scores
        # unlike indexing, this has a gradient that is summed in the same order always
        return scores._replace(value_N=self.value_head(distributions.hidden_UE).index_select(0, chosen_N))

    def _distributions(self, work: Pass, columns_C: Ints, site_U: Ints, temperature_U: Floats) -> _Distributions:
        """Those at ``site_U``, indices into the pass's (rows · columns)."""
        features_UE, hidden_UE = (states_RCE.flatten(0, 1) for states_RCE in self._features(work, columns_C))
        if not np.array_equal(site_U, np.arange(len(features_UE))):
            sites = self._tensor(site_U)
            is_hidden = hidden_UE is features_UE
            features_UE = features_UE[sites]
            hidden_UE = features_UE if is_hidden else hidden_UE[sites]
        return _Distributions(
            features_UE,
            hidden_UE,
            None if np.all(temperature_U == 1.0) else self._tensor(temperature_U)[:, None],
            self._to_logits,
            self.model.config.get_text_config().vocab_size,
        )

    def _features(self, work: Pass, columns_C: Ints) -> tuple[Tensor, Tensor]:
        """What the head takes and the hidden states, (rows, columns, size): the same, or logits where the model's head
        is not a plain one."""
        inputs: dict[str, Any] = {"input_ids": self._tensor(work.ids_RT), "use_cache": False}
        if work.subtree_end_T is not None:  # plain rows are what a model expects without being told
            inputs["position_ids"] = self._tensor(work.depth_RT)
            inputs["forest"] = ForestAttention(work.depth_RT[0], work.subtree_end_T)
        kept_C = self._tensor(columns_C)
        if self._head is not None:
            hidden_RCE: Tensor = self.model.base_model(**inputs).last_hidden_state[:, kept_C]
            return hidden_RCE, hidden_RCE
        if self.value_head is None:
            logits_RCV: Tensor = self.model(**inputs, logits_to_keep=kept_C).logits
            return logits_RCV, logits_RCV
        output = self.model(**inputs, logits_to_keep=kept_C, output_hidden_states=True)
        return output.logits, output.hidden_states[-1][:, kept_C]

    def _to_logits(self, features_UE: Tensor) -> Tensor:
        if self._head is None:
            return features_UE
        logits_UV: Tensor = self._head(features_UE)
        return logits_UV

    @cached_property
    @torch.no_grad()
    def _head(self) -> nn.Module | None:
        find = partial(_plain_head, self.model)
        return find() if self.shards is None else self.shards.through(find)

    def whole(self, weight: Tensor) -> Tensor:
        """Return a weight of the model as it is computed with, put together where it is spread over ranks."""
        return weight.detach() if self.shards is None else self.shards.whole(weight)

    @property
    def _matrix(self) -> Tensor | None:
        """The head's matrix on the CPU, where the head is nothing else."""
        head = self._head
        is_plain = type(head) is nn.Linear and head.bias is None and self.device.type == "cpu"
        return head.weight if isinstance(head, nn.Linear) and is_plain else None

    def _tensor(self, array: np.ndarray[Any, Any] | None) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(slots=True)
class PolicyMetrics:
    """Sums over the loss terms of a step, added to pass by pass and read once at its end.

    ``policy/mismatch_kl`` estimates ``KL(sampler ‖ learner)`` over the sampled tokens as ``E[r - 1 - log r]`` with
    ``r = π_learner / π_sampler``: unbiased, never negative and of low variance (Schulman 2020, "Approximating KL
    divergence", the estimator k3), computed in double precision, in which it stays so. Where sampler and learner have
    the same weights it is the rounding of their log-probabilities, about half its square. Ratios are those of the
    weights before the step's update.
    """

    count: int = 0
    """Loss terms so far."""
    _sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self,
        *,
        loss: Tensor,
        log_ratio_N: Tensor,
        entropy_N: Tensor,
        clipped_N: Tensor,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add one pass: its share of the loss, and one entry a term of the others, none with a gradient.

        ``means`` holds further metrics by name, of which the mean over terms is reported.
        """
        self.count += len(log_ratio_N)
        log_ratio_N = log_ratio_N.double()
        ratio_N = log_ratio_N.exp()
        sums = {
            "policy/loss": loss,
            "policy/entropy": entropy_N.sum(),
            "policy/clip_fraction": clipped_N.sum(),
            "policy/ratio_mean": ratio_N.sum(),
            # Not exp(x) - 1 - x, whose rounding is larger than it is.
            "policy/mismatch_kl": (log_ratio_N.expm1() - log_ratio_N).clamp(min=0.0).sum(),
            **{name: values_N.double().sum() for name, values_N in (means or {}).items()},
        }
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        highest = ratio_N.max()
        name = "policy/ratio_max"
        self._sums[name] = torch.maximum(self._sums[name], highest) if name in self._sums else highest

    def result(self, ranks: Ranks | None = None) -> dict[str, float]:
        """Return the loss of the step, and means over its terms, those of all ``ranks``."""
        counted = [(self.count, {name: float(value) for name, value in self._sums.items()})]
        counted = counted if ranks is None else ranks.gather(counted[0])
        count = sum(terms for terms, _ in counted)
        result: dict[str, float] = {}
        for name in dict.fromkeys(name for _, sums in counted for name in sums):
            values = [sums[name] for _, sums in counted if name in sums]
            whole = max(values) if name == "policy/ratio_max" else sum(values)
            result[name] = whole / (1 if name in ("policy/loss", "policy/ratio_max") else count)
        return result


@torch.no_grad()
def _plain_head(model: PreTrainedModel) -> nn.Module | None:
    """The module that takes ``model.base_model``'s hidden states to its logits; ``None`` where more happens to them.

    Some models scale or cap their logits after it, which a few positions show.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or model.base_model is model:
        return None
    run = np.arange(4)
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(run)[None].to(model.device), "use_cache": False}
    if model.config._attn_implementation == NAME:
        inputs["forest"] = ForestAttention(run, np.full(4, 4))
    plain, logits = head(model.base_model(**inputs).last_hidden_state), model(**inputs).logits
    return head if torch.allclose(plain, logits.to(plain.dtype), rtol=1e-4, atol=1e-5) else None


class _Distributions(NamedTuple):
    """The distributions that tokens are scored under: ``softmax(head(features) / temperature)`` over allowed tokens."""

    features_UE: Tensor
    hidden_UE: Tensor
    """What a value head reads."""
    temperature_U1: Tensor | None
    """``None`` where all are 1."""
    head: Callable[[Tensor], Tensor]
    """From features to logits, (…, size) to (…, vocabulary)."""
    vocabulary: int
    masks_MA: Tensor | None = None
    """``Targets.masks``; ``None`` where every token is allowed everywhere."""
    mask_U: Tensor | None = None
    """Row of ``masks_MA`` for each distribution; -1 allows every token."""
    weight_VE: Tensor | None = None
    """``head`` as a matrix, where it is one and on the CPU."""

    def chunk(self, start: int, stop: int) -> _Distributions:
        """Distributions ``[start, stop)``."""
        return self._replace(
            features_UE=self.features_UE[start:stop],
            temperature_U1=None if self.temperature_U1 is None else self.temperature_U1[start:stop],
            mask_U=None if self.mask_U is None else self.mask_U[start:stop],
        )

    def logits(self) -> Tensor:
        """Shape (distributions, vocabulary), in float32 at least; those of forbidden tokens are the lowest number."""
        logits_UV = self.head(self.features_UE)
        logits_UV = logits_UV.to(torch.promote_types(logits_UV.dtype, torch.float32))
        if self.temperature_U1 is not None:
            logits_UV = logits_UV / self.temperature_U1.to(logits_UV.dtype)
        if self.masks_MA is None or self.mask_U is None:
            return logits_UV
        masked = torch.nonzero(self.mask_U >= 0)[:, 0]
        allowed = self._allowed(self.mask_U[masked], logits_UV.shape[1])
        lowest = torch.finfo(logits_UV.dtype).min  # finite, so that its product with probability 0 is 0
        return logits_UV.index_copy(0, masked, logits_UV[masked].masked_fill(~allowed, lowest))

    def forbid(self, logits_UV: Tensor, start: int) -> None:
        """Do so with the logits of distributions from ``start`` on, in place."""
        assert self.mask_U is not None
        for row, mask in enumerate(self.mask_U[start : start + len(logits_UV)].tolist()):
            if mask >= 0:
                allowed = self._allowed(torch.tensor([mask]), logits_UV.shape[1])
                logits_UV[row].masked_fill_(~allowed[0], torch.finfo(logits_UV.dtype).min)

    def _allowed(self, rows: Tensor, vocabulary: int) -> Tensor:
        """Shape (rows, vocabulary): true where the token is allowed; tokens beyond a mask's bits are not."""
        assert self.masks_MA is not None
        bits = torch.arange(8, dtype=torch.uint8, device=rows.device)
        allowed = ((self.masks_MA[rows][:, :, None] >> bits) & 1).bool().flatten(1)
        return nn.functional.pad(allowed, (0, vocabulary - allowed.shape[1]))


def _score(distributions: _Distributions, distribution_N: Tensor, token_N: Tensor) -> TensorScores:
    """Score ``token_N[k]`` under distribution ``distribution_N[k]``; the gradient reaches features and head."""
    if distributions.weight_VE is not None:
        forbid = None if distributions.masks_MA is None else distributions.forbid
        logits = Logits(distributions.features_UE, distributions.weight_VE, distributions.temperature_U1, forbid)
        return TensorScores(*score_tokens(logits, distribution_N, token_N))
    count, size = len(distributions.features_UE), max(1, MAX_LOGITS // distributions.vocabulary)
    if count <= size:
        return _score_chunk(distributions, distribution_N, token_N)
    order: list[Tensor] = []
    scores: list[tuple[Tensor, Tensor]] = []
    for start in range(0, count, size):
        here = torch.nonzero((distribution_N >= start) & (distribution_N < start + size))[:, 0]
        chunk = distributions.chunk(start, start + size)
        arguments = (chunk, distribution_N[here] - start, token_N[here])
        scores.append(checkpoint(_score_chunk, *arguments, use_reentrant=False)[:2])
        order.append(here)
    back = torch.cat(order).argsort()
    logprob_N, entropy_N = (torch.cat([each[column] for each in scores])[back] for column in (0, 1))
    return TensorScores(logprob_N, entropy_N)


def _score_chunk(distributions: _Distributions, distribution_N: Tensor, token_N: Tensor) -> TensorScores:
    logprob_N, entropy_N = _LogSoftmax.apply(distributions.logits(), distribution_N, token_N)  # type: ignore[no-untyped-call]
    return TensorScores(logprob_N, entropy_N)


class _LogSoftmax(torch.autograd.Function):
    """Log-probabilities and entropies of chosen tokens, from the logits of the distributions that they share."""

    @staticmethod
    def forward(ctx: Any, logits_UV: Tensor, distribution_N: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        normaliser_U = logits_UV.logsumexp(-1)
        probability_UV = (logits_UV - normaliser_U[:, None]).exp_()
        entropy_U = normaliser_U - torch.linalg.vecdot(probability_UV, logits_UV)
        ctx.save_for_backward(probability_UV, entropy_U, distribution_N, token_N)
        ctx.set_materialize_grads(False)
        return logits_UV[distribution_N, token_N] - normaliser_U[distribution_N], entropy_U[distribution_N]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor | None, entropy_grad_N: Tensor | None) -> tuple[Tensor | None, ...]:
        probability_UV, entropy_U, distribution_N, token_N = ctx.saved_tensors
        total_U = torch.zeros_like(entropy_U)
        if grad_N is not None:
            total_U.index_add_(0, distribution_N, grad_N)
        gradient_UV = probability_UV * -total_U[:, None]
        if grad_N is not None:
            # summed one by one, unlike by advanced indexing, so that the order is always the same
            gradient_UV.view(-1).index_add_(0, distribution_N * probability_UV.shape[1] + token_N, grad_N)
        if entropy_grad_N is not None:  # dH/dz = -p (log p + H)
            entropy_total_U = torch.zeros_like(entropy_U).index_add_(0, distribution_N, entropy_grad_N)
            surprise_UV = torch.xlogy(probability_UV, probability_UV).addcmul_(probability_UV, entropy_U[:, None])
            gradient_UV.addcmul_(surprise_UV, entropy_total_U[:, None], value=-1.0)
        return gradient_UV, None, None
