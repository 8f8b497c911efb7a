"""What every inference backend has to hold to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from agentrl.inference.contract import Backend, BackendContext
from agentrl.plugins import Plugins
from agentrl.testing.looping import LoopThread
from agentrl.testing.models import model_folder
from agentrl.testing.parts import MISSING, PartName, as_part, given

__all__ = ["BackendConformance"]


class BackendConformance:
    """Tests of one inference backend. Subclass it with a name that begins with ``Test``, and set ``backend``."""

    backend: ClassVar[PartName] = MISSING
    """Its name, or ``{"name": …}`` with its keys."""
    model: ClassVar[str] = "tiny"
    """The model that it serves, small enough to be run beside it."""
    options: ClassVar[Mapping[str, Any]] = {}
    """More keys of the backend."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Backend]:
        """The backend, started."""
        name = given(cls, "backend")
        part = as_part({"name": name, **cls.options} if isinstance(name, str) else {**name, **cls.options})
        context = BackendContext(model_folder(cls.model), options=dict(part.options))
        backend: Backend = Plugins().build("backends", part, context=context)
        loop = LoopThread()
        loop.run(backend.start(), deadline_s=120, what="the backend's start")
        yield backend
        loop.run(backend.stop(), deadline_s=120, what="the backend's stop")
        loop.close()

    def test_it_starts(self, engine: Backend) -> None:
        assert engine is not None
