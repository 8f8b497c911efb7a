"""Proofs of updates, as a run makes them, and how it stops at one."""

from __future__ import annotations

from agentrl.errors import BackendError
from agentrl.inference.contract import Backend, Weights
from agentrl.training.proof import Recorded, UpdateProof

__all__ = ["begun", "stopped_by"]

_CALL = Recorded(tuple(range(5, 55)), tuple(range(60, 80)))
"""A prompt and its completion, of which parts are scored."""


async def begun(backend: Backend, weights: Weights) -> UpdateProof:
    """The proof of a run that begins with ``weights``, which the engine and the learner have."""
    proof = UpdateProof(warn=lambda text: None)
    await proof.prepare(backend, weights, _CALL)
    return proof


async def stopped_by(backend: Backend, proof: UpdateProof, weights: Weights) -> str:
    """The message with which a run stops at the update to ``weights``; empty where it goes on."""
    try:
        await backend.update_weights(weights)
        await proof.prove(backend, weights, _CALL.prompt_ids)
    except BackendError as error:
        return error.message
    return ""
