"""What a plugin may declare about the environment that it needs, in the entry-point group ``agentrl.environments``.

An entry names a ``Recipe``, or a function without parameters that returns one for the machine that it is called on::

    ENGINE = Recipe(("agentrl-engine", "engine-cpu==1.2"), uninstall=("vision",))

``agentrl env create NAME`` follows the recipe of that name. Without one it installs the distribution ``agentrl-NAME``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How ``agentrl env create NAME`` makes the environment that the entry names."""

    requirements: tuple[str, ...]
    """What is installed in addition to agentrl-core, as ``pip install`` takes it."""
    uninstall: tuple[str, ...] = ()
    """Distributions that are removed afterwards, where the requirements have brought them."""
