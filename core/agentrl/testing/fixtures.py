"""Fixtures for an author's own tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.testing.models import model_folder
from agentrl.testing.scripted import Completion, ScriptedBackend

__all__ = ["scripted", "tiny_model"]


@pytest.fixture
def scripted() -> Callable[..., ScriptedBackend]:
    """Makes a ``ScriptedBackend`` that plays the given completions, of the model ``tiny``."""

    def scripted(*completions: Completion) -> ScriptedBackend:
        return ScriptedBackend(completions)

    return scripted


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of the bundled model ``tiny``."""
    return model_folder()
