"""The conformance suite of inference backends."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pytest

from agentrl.errors import BackendError
from agentrl.inference.contract import Chunk, Sampling
from agentrl.testing.backends.adapters import AdapterUpdates
from agentrl.testing.backends.bench import Bench, ask, read
from agentrl.testing.backends.exactness import Exactness
from agentrl.testing.backends.forms import Forms
from agentrl.testing.backends.held_weights import HeldTensors
from agentrl.testing.backends.requests import Requests
from agentrl.testing.backends.weight_updates import WeightUpdates

__all__ = ["BackendConformance"]

_ALWAYS_HONOURED = {"max_tokens", "stop_ids"}


class BackendConformance(AdapterUpdates, HeldTensors, WeightUpdates, Exactness, Forms, Requests):
    """Tests of one inference backend. Subclass it with a name that begins with ``Test``, and set ``backend``.

    The backend is started once for all of them. Pytest runs the tests of the last base first, so updates come late.
    """

    def test_it_says_what_it_can_do(self, bench: Bench) -> None:
        stated = bench.capabilities
        assert stated.context_length >= 2, f"context_length={stated.context_length}"
        assert stated.max_concurrency >= 1, f"max_concurrency={stated.max_concurrency}"
        known = {field.name for field in fields(Sampling)} - _ALWAYS_HONOURED
        assert stated.sampling <= known, f"capabilities.sampling names {sorted(stated.sampling - known)}: unknown"
        least, most = stated.temperatures
        assert 0 <= least <= 1 <= most, f"capabilities.temperatures={stated.temperatures} does not hold 1"

    def test_it_stops_while_it_generates_and_stops_twice(self, bench: Bench) -> None:
        if not self.other_models:
            pytest.skip("it cannot be started a second time: `other_models` is false")
        prompt = bench.prompts(1)[0]
        backend = self.built(bench.reference.folder)

        async def scenario() -> Chunk | BaseException:
            await backend.start()
            reading = asyncio.ensure_future(read(backend, ask(prompt)))
            try:
                await read(backend, ask(prompt, max_tokens=1))
            finally:
                await backend.stop()
                await backend.stop()
            (ended,) = await asyncio.gather(reading, return_exceptions=True)
            with pytest.raises(BackendError):
                await read(backend, ask(prompt, max_tokens=1))
            return ended

        deadline = self.timeout + self.start_timeout
        ended = bench.loop.run(scenario(), deadline_s=deadline, what="a backend that is stopped while it generates")
        if isinstance(ended, BaseException):
            assert isinstance(ended, BackendError), f"a request that stop() ends is a BackendError, not {ended!r}"
