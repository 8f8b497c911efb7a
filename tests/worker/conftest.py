"""Workers, and agents written for one test."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.worker.rollout_end import Rollout


@pytest.fixture
def start() -> Iterator[Callable[..., Rollout]]:
    """Starts workers, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Rollout(*args, **options))


@pytest.fixture
def rollout(start: Callable[..., Rollout]) -> Rollout:
    return start()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes an agent's file; its object is called ``agent``."""

    def write(source: str) -> str:
        path = tmp_path / "an_agent.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return f"{path}:agent"

    return write


@pytest.fixture
def loaded(rollout: Rollout, write: Callable[[str], str]) -> Callable[[str], Rollout]:
    """A worker that has loaded the agent of a source."""

    def loaded(source: str) -> Rollout:
        answer = rollout.load(write(source))
        assert answer["type"] == "loaded", answer
        return rollout

    return loaded
