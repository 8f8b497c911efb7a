"""The hooks: where a plugin takes part in a run, in the order in which they are called.

A plugin is a module, or an object, in the entry-point group ``agentrl.plugins``; each hook that it
implements is a function of the hook's name, marked with ``hookimpl``, taking any of the arguments below::

    from agentrl import hookimpl

    @hookimpl
    def agentrl_step_finished(step, metrics):
        print(step, metrics["reward/mean"])

What a hook raises ends the run, with the plugin's name in the error. From ``agentrl_run_started`` on, the hooks of a
plugin are called one after another in a thread of their own, while the run goes on; a plugin with a hook that does not
return within ``run.hook_timeout`` is called no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from agentrl.config.models import Config
    from agentrl.plugins.hooks import Registry
    from agentrl.rollout.contract import Episode, Group

__all__ = ["PROJECT", "hookimpl"]

PROJECT = "agentrl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as a plugin's implementation of the hook that has its name."""


@hookspec
def agentrl_register(registry: Registry) -> None:
    """Add names that are known only at run time, with ``registry.add``."""


@hookspec(firstresult=True)
def agentrl_adapt_agent(obj: object) -> object | None:
    """Turn a framework's native object into an agent, or return ``None`` where it is not yours."""


@hookspec
def agentrl_configure(config: Config) -> None:
    """The configuration is resolved and nothing is built yet; raise ``ConfigError`` to refuse it."""


@hookspec
def agentrl_run_started(run: object) -> None:
    """The run folder exists and the first episode has not started."""


@hookspec
def agentrl_episode_finished(episode: Episode) -> None:
    """An episode, of training or of evaluation, has ended and is in the episode store."""


@hookspec
def agentrl_batch_ready(batch: Sequence[Group]) -> None:
    """The groups of one step are complete and about to be trained on.

    Not called by `agentrl sft`, whose steps have conversations and no groups.
    """


@hookspec
def agentrl_step_finished(step: int, metrics: Mapping[str, float]) -> None:
    """An optimiser step is done; ``step`` counts from 1."""


@hookspec
def agentrl_evaluation_finished(step: int, metrics: Mapping[str, float]) -> None:
    """The weights after ``step`` optimiser steps have been evaluated; ``step`` is 0 before the first one.

    ``metrics`` are what is logged of it, by name: ``evaluation/reward``, ``evaluation/reward_greedy``, … and of
    `agentrl sft` ``evaluation/loss``. An evaluation beside training may end after later steps.
    """


@hookspec
def agentrl_checkpoint_saved(path: Path) -> None:
    """A checkpoint folder is complete."""


@hookspec
def agentrl_run_finished(run: object, outcome: str) -> None:
    """The run has ended and its summary is written; ``outcome`` is as in ``summary.json``."""
