"""What is examined, and what the sections have found out that later ones need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.algorithms.algorithm import Algorithm
    from agentrl.config.loader import Resolved
    from agentrl.config.models import Config
    from agentrl.doctor.size import ModelSize
    from agentrl.learner.learner import Learner
    from agentrl.plugins import Plugins
    from agentrl.rollout.contract import Episode, Group
    from agentrl.tokens.renderer import Renderer
    from agentrl.training.parts import Parts
    from agentrl.training.serving import Serving

__all__ = ["Case"]


@dataclass
class Case:
    """A config and the machine that it is to be trained on.

    What is declared without a default is there from the start; the rest is set by the section of its name, and
    read only by sections that need that one.
    """

    resolved: Resolved
    plugins: Plugins
    doing: Callable[[str], None] = lambda _: None
    """Says what goes on now, in a few words; from any thread."""
    warn: Callable[[str], None] = lambda _: None
    """Takes a warning of what runs in the background."""
    complete: bool = False
    """Whether all that training needs is installed and can be imported."""
    size: ModelSize | None = None
    """``None`` where the model was not found."""
    episodes: list[Episode] = field(default_factory=list)
    """Every episode that has ended."""
    episode_ended: Callable[[], None] = lambda: None
    """Called for each of them."""
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    """Holds what runs while episodes are run."""

    folder: Path = field(init=False)
    renderer: Renderer = field(init=False)
    parts: Parts = field(init=False)
    algorithm: Algorithm = field(init=False)
    learner: Learner = field(init=False)
    serving: Serving = field(init=False)
    groups: list[Group] = field(init=False)

    @property
    def config(self) -> Config:
        """The config that training would have."""
        return self.resolved.config
