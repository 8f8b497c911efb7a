"""From the names in a config to the parts of a run; starts nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.config.models import Config
from agentrl.environments import locate_agent
from agentrl.errors import ConfigError, one_line
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.rewards import call_reward, load_reward
from agentrl.rollout.runner import Score
from agentrl.tasks import load_tasks
from agentrl.tasks.contract import TaskSet
from agentrl.tokens.renderer import Renderer, load_renderer
from agentrl.training.agent import Agent, resolve_agent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Parts", "resolve_parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the names in a config stand for."""

    config: Config
    plugins: Plugins
    agent: Agent
    score: Score | None
    """``None`` where the agent returns its own reward."""
    train_tasks: TaskSet
    eval_tasks: TaskSet | None
    model_folder: Path
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer


def resolve_parts(config: Config, plugins: Plugins, agent: Any = None) -> Parts:
    """Resolve every name of ``config``; ``agent`` may be the agent itself instead of a name.

    An agent that lives in another environment is found there. Raises ``ConfigError`` or ``PluginError`` for the
    first name that stands for nothing.
    """
    config = locate_agent(config, plugins) if agent is None else config
    return Parts(
        config=config,
        plugins=plugins,
        agent=resolve_agent(config, plugins, agent),
        score=None if config.reward is None else partial(call_reward, load_reward(plugins, config.reward)),
        train_tasks=load_tasks(plugins, config.tasks.train, at="tasks.train"),
        eval_tasks=None if config.tasks.eval is None else load_tasks(plugins, config.tasks.eval, at="tasks.eval"),
        model_folder=(folder := find_model(plugins, config.model)),
        tokenizer=(tokenizer := _tokenizer(folder)),
        renderer=load_renderer(tokenizer, config.model.renderer),
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {folder} has no tokenizer that loads: {one_line(error)[:200]}",
            fix="save the model's tokenizer beside its weights with `save_pretrained`",
        ) from error
    return tokenizer
