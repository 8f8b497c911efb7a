"""What every part of a backend's suite stands on: the backend that a subclass names, started once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentrl.inference.contract import Backend
from agentrl.testing.backends.bench import Bench, bench, build_backend
from agentrl.testing.models import model_folder
from agentrl.testing.parts import MISSING, PartName, given, told

__all__ = ["BackendSuite"]


class BackendSuite:
    """Class attributes, and a bench that all tests of the class share."""

    backend: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    options: ClassVar[Mapping[str, Any]] = {}
    """More keys of the backend, such as those that make it exact or quick to start."""
    model: ClassVar[str] = "tiny"
    """The model that it serves: a bundled name or a folder. It is run beside the backend on the CPU, in float32."""
    other_models: ClassVar[bool] = True
    """Whether it can be started a second time, on a model that a test makes."""
    concurrency: ClassVar[int] = 4
    """Completions at once that it is started for."""
    tolerance: ClassVar[float] = 1e-4
    """How far a logprob may be from the model's, and how near another token's for either to be the likeliest."""
    flight: ClassVar[int] = 400
    """Tokens of a completion that is still under way once weights have been updated."""
    timeout: ClassVar[float] = 30.0
    """Seconds that what a test asks for may take."""
    start_timeout: ClassVar[float] = 120.0
    """Seconds that starting and stopping may take."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls) -> Iterator[Bench]:
        """The backend, started on ``model``."""
        with cls.started(model_folder(cls.model)) as table:
            yield table

    @classmethod
    def built(cls, folder: Path) -> Backend:
        """The backend on a model folder, not started."""
        with told():
            return build_backend(given(cls, "backend"), cls.options, folder, concurrency=cls.concurrency)

    @classmethod
    def started(cls, folder: Path) -> Any:
        """A context manager: a bench with the backend on a model folder."""
        return bench(cls.built, folder, timeout=cls.timeout, start_timeout=cls.start_timeout)


def needs(bench: Bench, field: str) -> None:
    """Skip a test of a field of ``Sampling`` that the backend does not claim."""
    if field not in bench.capabilities.sampling:
        pytest.skip(f"the backend does not claim to honour {field!r}")


def needs_temperature(bench: Bench, temperature: float) -> None:
    """Skip a test at a temperature that the backend does not claim."""
    if not bench.capabilities.honours_temperature(temperature):
        pytest.skip(f"the backend does not claim to sample at temperature {temperature:g}")


def needs_training(bench: Bench) -> None:
    """Skip a test of what only a backend that is trained with has to do."""
    if not bench.capabilities.trains:
        pytest.skip("the backend does not claim exact logprobs or new weights: capabilities.trains is false")
