"""From the names in a config to the parts of a run; starts nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.config.models import Config
from agentrl.environments import locate_agent
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.runner import Score
from agentrl.tasks import load_tasks
from agentrl.tasks.contract import TaskSet
from agentrl.tokens.renderer import Renderer
from agentrl.training.agent import Agent, resolve_agent
from agentrl.training.backends import check_takes_weights, is_chat
from agentrl.training.chat import load_chat
from agentrl.training.checkpoints import Conversing
from agentrl.training.sampling import check_override

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EpisodeParts", "Parts", "resolve_episode_parts", "resolve_parts"]


@dataclass(frozen=True, slots=True)
class EpisodeParts:
    """What the names in a config stand for, as far as episodes need it whatever model they talk to."""

    config: Config
    plugins: Plugins
    agent: Agent
    score: Score | None
    """``None`` where the agent returns its own reward."""
    train_tasks: TaskSet
    eval_tasks: TaskSet | None


@dataclass(frozen=True, slots=True)
class Parts(EpisodeParts):
    """What the names in a config stand for, the model among them."""

    model_folder: Path
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    conversing: Conversing
    """What every checkpoint keeps of how the model is talked to."""


def resolve_parts(config: Config, plugins: Plugins, agent: Any = None) -> Parts:
    """Resolve every name of ``config``; ``agent`` may be the agent itself instead of a name.

    An agent that lives in another environment is found there. Raises ``ConfigError`` or ``PluginError`` for the
    first name that stands for nothing, and for a backend whose model is no folder.
    """
    check_takes_weights(config, plugins)
    common = resolve_episode_parts(config, plugins, agent)
    folder = find_model(plugins, config.model)
    config = _named(common.config, folder)
    chat = load_chat(folder, config.model)
    return Parts(
        config=config,
        plugins=plugins,
        agent=common.agent,
        score=common.score,
        train_tasks=common.train_tasks,
        eval_tasks=common.eval_tasks,
        model_folder=folder,
        tokenizer=chat.tokenizer,
        renderer=chat.renderer,
        conversing=chat.kept,
    )


def _named(config: Config, folder: Path) -> Config:
    """``config`` with the checkpoint that a run's folder stands for now; later it may stand for another."""
    if folder.parent.name != "checkpoints" or folder.parent.parent != Path(os.path.expanduser(config.model.name)):
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(folder)})})


def resolve_episode_parts(config: Config, plugins: Plugins, agent: Any = None) -> EpisodeParts:
    """As ``resolve_parts``, for a model that an endpoint serves."""
    check_override(config, chat=is_chat(config, plugins))
    config = locate_agent(config, plugins) if agent is None else config
    return EpisodeParts(
        config=config,
        plugins=plugins,
        agent=resolve_agent(config, plugins, agent),
        score=None if config.reward is None else partial(call_reward, load_reward(plugins, config.reward)),
        train_tasks=load_tasks(plugins, config.tasks.train, at="tasks.train"),
        eval_tasks=None if config.tasks.eval is None else load_tasks(plugins, config.tasks.eval, at="tasks.eval"),
    )
