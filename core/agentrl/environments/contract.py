"""What a plugin may say about the environment that it needs, in the entry-point group ``agentrl.environments``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How ``agentrl env create NAME`` makes the environment that the entry names.

    The entry's object is a recipe, or a function without arguments that returns one for this machine.
    """

    requirements: tuple[str, ...]
    """What is installed beside agentrl-core, as ``pip install`` takes it."""
    uninstall: tuple[str, ...] = ()
    """Distributions that are removed afterwards, where the requirements have brought them."""
