"""The proof, after every update, that the engine samples from the learner's weights.

It is given in two ways. *Transport*: the engine tells the digest of every tensor that it holds, and each has to be the
learner's, cast to the type that the engine holds it in. *Numeric*: the tokens of a recorded text are scored by engine
and learner. How far the two are apart before any weights have changed is the noise. From there on the learner's
log-probabilities move with every update, and as soon as they have moved by more than four times the noise, the engine's
have to have moved with them, by as much and token for token. A short completion of a prompt of the step, which the
engine has computed under older weights, shows whether it still uses what it kept of it.

The first way finds a single bit, and what the engine never computes with; the second finds what digests cannot show, an
engine that has the tensors and computes with something else, and serves for engines that cannot tell what they hold.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from agentrl.costs.contract import Usage
from agentrl.errors import BackendError
from agentrl.gateway.completer import generate
from agentrl.inference.contract import Backend, Chunk, GenerationRequest, HeldWeights, Sampling, completion_fault
from agentrl.loops import finish_in_thread
from agentrl.tokens.contract import Position, TokenTree

if TYPE_CHECKING:
    import numpy.typing as npt

    from agentrl.inference.contract import Adapter, TensorDigest, Weights

    Logprobs = npt.NDArray[np.float64]

__all__ = ["Recorded", "UpdateProof"]

_TEXT = 32
"""Most tokens of the recorded text, of which so many tell half an update from a whole one."""
_GIVEN = 8
"""Most tokens of it that end a prompt; those that begin its completion follow."""
_FEW, _MANY = (24, 2), (48, 4)
"""Most tokens of the beginning of a prompt, and of its completion by the engine: for one that rounds to 32 bits, whose
old KV every token shows, and for any other."""
_FEWEST = 2
"""Fewest tokens of a text that has something to score."""
_FLOOR = 1e-6
"""The least noise, in nats, that is assumed: rounding to 32 bits."""
_EXACT = 1.5e-3
"""Noise below this is rounding to 32 bits, and a completion right after an update may be off by as much."""
_MOVED = 4.0
"""How far the learner has to have moved for the engine to have to have followed, as a multiple of the noise."""
_FOLLOWED = (0.25, 5.0)
"""How far from 1 the share of the learner's movement may be that the engine has followed, and how many times its
standard error it may be in any case."""
_STILL = 0.05
"""Up to which share of the learner's movement the engine has not moved at all."""
_ASIDE = (20.0, 1 / 32)
"""How far the engine may have moved otherwise than the learner: the larger of a multiple of the noise, which may grow
in a long run, and a share of the learner's movement."""
_STALE = 8.0
"""From which multiple of the noise on a completion is compared with the same tokens scored anew."""
_LARGER = 4.0
"""How many times as far off as those it is where old KV is the reason."""
_LIMIT = 0.45
"""How far off it may be with more noise, in nats: a mismatch KL of 0.1."""
_GROWTH = 10.0
"""How far off it may be in any case, as a multiple of the noise."""
_ROUNDED = frozenset({"bfloat16", "float16"})
"""Types in which the sum of a weight and an adapter loses digits of the adapter."""
_FIX = (
    "mend the backend's update_weights, or use another inference.backend; agentrl doctor and "
    "agentrl.testing.BackendConformance hold it against the learner"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call of an episode, of which proofs use a part."""

    prompt_ids: Sequence[int]
    sampled_ids: Sequence[int]

    @classmethod
    def of(cls, trees: Iterable[TokenTree]) -> Recorded | None:
        """The first completion of the first tree that has one; ``None`` where none has."""
        for tree in trees:
            for span in tree.spans:
                if span.sampled is not None:
                    return cls(tree.path(Position(span.parent, span.fork)), span.ids)
        return None


@dataclass(frozen=True, slots=True)
class _Scored:
    """Log-probabilities of the same tokens, by learner and engine, under the weights of one version."""

    version: int
    learner: Logprobs
    engine: Logprobs

    @property
    def off(self) -> float:
        """How far the two are apart."""
        return _rms(self.engine - self.learner)


@dataclass
class UpdateProof:
    """The proofs of one run. One call at a time."""

    warn: Callable[[str], None]
    """Takes a warning, one line of text."""
    spend: Callable[[Usage], None] = lambda usage: None
    """Takes what the engine is asked for."""
    _text: tuple[int, ...] = ()
    _lengths: tuple[int, int] = _MANY
    _noise: float = 0.0
    """Root mean square of the differences between engine and learner before any weights had changed, in nats."""
    _since: _Scored | None = None
    """From where movement is counted: the newest version of which the engine was seen to have followed."""
    _dtypes: dict[str, str] = field(default_factory=dict)
    """The type that the engine held each tensor in at first."""
    _digests: Mapping[str, TensorDigest] = field(default_factory=dict)
    """The learner's digests of the version that was proven last."""
    _proven: int = -1
    """That version."""
    _apart: bool = False
    """Whether those are of a base and its adapter apart."""

    @property
    def prepared(self) -> bool:
        """Whether the noise is known."""
        return self._since is not None

    async def prepare(self, backend: Backend, weights: Weights, recorded: Recorded) -> None:
        """Measure the noise, under ``weights`` that the engine was started with or has been given before.

        Raises ``BackendError`` where the engine holds other tensors than the learner, or does not answer. Of a prompt
        and completion that are one token together there is nothing to measure; ``prepared`` stays false then.
        """
        await self._transported(backend, weights, "before the first update")
        self._text = (*recorded.prompt_ids[-_GIVEN:], *recorded.sampled_ids)[:_TEXT]
        if len(self._text) < _FEWEST:
            return
        scored = await self._scored(backend, weights, self._text)
        completed = await self._completed(backend, weights, recorded.prompt_ids)
        both = [scored] if completed is None else [scored, completed[1]]
        self._noise = max(_rms(np.concatenate([each.engine - each.learner for each in both])), _FLOOR)
        if self._noise < _EXACT:
            self._lengths = _FEW
        self._since = scored

    async def prove(self, backend: Backend, weights: Weights, prompt_ids: Sequence[int]) -> dict[str, float]:
        """Have ``backend`` show that it samples from ``weights``, which it was given just now.

        ``prompt_ids`` is a prompt that it has computed before. Returns the proof's metrics. Raises ``BackendError``,
        which says what is wrong, where it does not, or where it does not answer. A completion that fails is no proof
        against it: calls of agents fail then too, and are counted.
        """
        began = time.perf_counter()
        when = f"after the update to version {weights.version}"
        tensors = await self._transported(backend, weights, when)
        metrics = {"proof/tensors": float(tensors)}
        if self._since is not None:
            scored = await self._scored(backend, weights, self._text)
            metrics |= self._followed(self._since, scored, when, bool(tensors))
            completed = await self._completed(backend, weights, prompt_ids)
            if completed is not None:
                await self._not_stale(backend, *completed, when)
                metrics["proof/completion"] = completed[1].off
        return metrics | {"seconds/proof": time.perf_counter() - began}

    # Transport

    async def _transported(self, backend: Backend, weights: Weights, when: str) -> int:
        """Compare digests. Returns of how many tensors; 0 where the engine cannot tell."""
        if self._dtypes and (not self._apart or weights.adapter is not None):
            held, expected = await asyncio.gather(
                backend.held_weights(), finish_in_thread(self._lent(weights).digests, self._dtypes)
            )
        else:
            held, expected = await backend.held_weights(), {}
        if held.apart != self._apart:
            self._apart, self._dtypes, expected = held.apart, {}, {}
        if held.apart and weights.adapter is None:
            _refuse(when, "it computes with an adapter, and was given weights without one")
        if held.version != weights.version:
            _refuse(when, f"it serves version {held.version}, and was given version {weights.version} (wrong version)")
        if held.tensors is None:
            if self._proven < 0:
                self.warn(
                    "updates are proven by recorded tokens alone, because the engine gives no digests of its tensors: "
                    f"{held.inability or 'it does not say why'}"
                )
            self._proven = weights.version
            return 0
        if new := {name: tensor.dtype for name, tensor in held.tensors.items() if name not in self._dtypes}:
            expected = {**expected, **await finish_in_thread(self._lent(weights).digests, new)}
        if faults := self._faults(held, expected, weights):
            _refuse(when, "; ".join(faults))
        self._dtypes |= new
        self._digests, self._proven = expected, weights.version
        return len(held.tensors)

    def _lent(self, weights: Weights) -> Weights | Adapter:
        """What the engine's tensors are compared with: the weights, or their base and adapter apart."""
        return weights.adapter if self._apart and weights.adapter is not None else weights

    def _faults(self, held: HeldWeights, expected: Mapping[str, TensorDigest], weights: Weights) -> list[str]:
        """What is wrong with the tensors that the engine holds, one sentence for each kind of fault."""
        assert held.tensors is not None
        first = [*weights.names()]
        if self._apart and weights.adapter is not None:
            first += [name for name, _ in weights.adapter.tensors()]
        found: dict[str, list[str]] = {}
        for name in _missing(held, expected, self._lent(weights), first):
            found.setdefault("it does not hold {} (missing)", []).append(name)
        for name, tensor in held.tensors.items():
            wanted = expected.get(name)
            if tensor == wanted:
                continue
            if wanted is None:
                kind = "it holds {}, which the learner's model does not have"
            elif tensor.dtype != wanted.dtype:
                kind = f"it holds {{}} in {tensor.dtype}, and held it in {wanted.dtype} before (wrong type)"
            elif tensor.shape != wanted.shape:
                kind = f"it holds {{}} in the shape {list(tensor.shape)}, and not {list(wanted.shape)} (wrong shape)"
            elif name not in first:
                kind = "it holds {} apart from the tensor that it is tied to, and did not renew it (lost tie)"
            elif tensor == self._digests.get(name):
                kind = f"it still holds {{}} of version {self._proven} (old)"
            else:
                kind = "it holds {} with other numbers than the learner's (changed or written in part)"
            found.setdefault(kind, []).append(name)
        return [kind.format(_some(names)) for kind, names in found.items()]

    # Numbers

    def _learner(self, weights: Weights, ids: Sequence[int]) -> Sequence[float]:
        """What the engine's numbers are compared with.

        Merged into weights of 16 bits, an adapter is rounded with them. How much that makes of a log-probability no
        noise shows that was measured before the adapter was trained, so the learner rounds it in the same way.
        """
        adapter = weights.adapter
        if adapter is None or self._apart or _ROUNDED.isdisjoint(self._dtypes.values()):
            return weights.logprobs(ids)
        return adapter.merged_logprobs(ids, self._dtypes)

    async def _scored(self, backend: Backend, weights: Weights, ids: Sequence[int]) -> _Scored:
        """Given tokens, scored by both at once."""
        self.spend(Usage(prompt_tokens=len(ids)))
        learner, engine = await asyncio.gather(finish_in_thread(self._learner, weights, ids), backend.score(ids))
        return _Scored(weights.version, np.array(learner), np.array(engine))

    async def _completed(
        self, backend: Backend, weights: Weights, prompt_ids: Sequence[int]
    ) -> tuple[list[int], _Scored] | None:
        """A completion of a prompt as a request gets it: all its tokens, and the scores of the completion's."""
        length, tokens = self._lengths
        prompt_ids = prompt_ids[:length]
        done = await _completion(backend, prompt_ids, tokens)
        self.spend(Usage(prompt_tokens=len(prompt_ids), completion_tokens=0 if done is None else len(done.ids)))
        if done is None:
            return None
        ids = [*prompt_ids, *done.ids]
        learner = await finish_in_thread(self._learner, weights, ids)
        return ids, _Scored(weights.version, np.array(learner)[-len(done.ids) :], np.array(done.logprobs))

    def _followed(self, since: _Scored, now: _Scored, when: str, are_equal: bool) -> dict[str, float]:
        """Compare the movements since a version at which engine and learner agreed; ``are_equal`` are the digests."""
        learner, engine = now.learner - since.learner, now.engine - since.engine
        moved = _rms(learner)
        metrics = {"proof/noise": self._noise, "proof/moved": moved}
        if not moved > _MOVED * self._noise:
            return metrics
        share = float(engine @ learner / (learner @ learner))
        aside = _rms(engine - learner)
        # Both versions' noise is in the share, as the slope of a regression through the origin has it.
        error = math.sqrt(2) * self._noise / (moved * math.sqrt(len(learner)))
        multiple, part = _ASIDE
        if not (
            abs(share - 1) <= max(_FOLLOWED[0], _FOLLOWED[1] * error)
            and aside <= max(multiple * self._noise, part * moved)
        ):
            where = (
                "it holds the learner's tensors and computes with something else, such as copies of them"
                if are_equal
                else f"it computes with the weights of version {since.version}"
                if _rms(engine) <= max(_MOVED * self._noise, _STILL * moved)
                else "a part of the new weights did not arrive"
            )
            _refuse(
                when,
                f"the learner's log-probabilities of {len(learner)} recorded tokens have moved by {moved:.2g} since "
                f"version {since.version}, the engine's have followed by {share:.0%} of that and moved by {aside:.2g} "
                f"otherwise, with a noise of {self._noise:.1g} (numeric): {where}",
            )
        self._since = now
        return {**metrics, "proof/followed": share}

    async def _not_stale(self, backend: Backend, ids: Sequence[int], completed: _Scored, when: str) -> None:
        """Compare a completion, which ends ``ids``, with the learner. What shows old KV in it stops the run."""
        off = completed.off
        if off <= _STALE * self._noise:
            return
        self.spend(Usage(prompt_tokens=len(ids)))
        anew = np.array(await backend.score(ids))[-len(completed.engine) :]
        rest = _rms(anew - completed.learner)
        if off > _LARGER * rest:
            _refuse(
                when,
                f"the log-probabilities of a completion are off by {off:.2g}, and those of the same tokens by "
                f"{rest:.2g} where no KV is kept (stale cache): it goes on with KV of older weights",
            )
        if not off <= max(_EXACT if self._noise < _EXACT else _LIMIT, _GROWTH * self._noise):
            _refuse(
                when,
                f"its log-probabilities of a completion are off by {off:.2g}, and were by {self._noise:.1g} before "
                "any weights had changed",
            )


def _missing(
    held: HeldWeights, expected: Mapping[str, TensorDigest], weights: Weights | Adapter, names: Sequence[str]
) -> list[str]:
    """Which of ``names`` the engine tells nothing of, under none of their names."""
    assert held.tensors is not None
    missing = [name for name in names if name not in held.tensors]
    if not missing:
        return []
    # A tied tensor may go by another name: then that has its digest.
    aliases = {expected[name] for name in held.tensors.keys() & expected.keys() - set(names)}
    dtypes = {tensor.dtype for tensor in aliases}
    return [
        name for name in missing if not any(aliases & set(weights.digests({name: dtype}).values()) for dtype in dtypes)
    ]


def _refuse(when: str, fault: str) -> NoReturn:
    raise BackendError(
        f"the inference engine does not sample from the learner's weights: {when} {fault}",
        fix=_FIX,
    )


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    rest = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _rms(differences: Logprobs) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(differences)))) if len(differences) else 0.0


async def _completion(backend: Backend, prompt_ids: Sequence[int], tokens: int) -> Chunk | None:
    """A completion of ``tokens`` tokens; ``None`` where the backend fails to make one."""
    try:
        done = await generate(backend, GenerationRequest(prompt_ids, Sampling(max_tokens=tokens)))
    except BackendError:
        return None
    return done if completion_fault(done) is None else None
