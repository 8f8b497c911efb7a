"""From the names in a config to the parts of a run. Nothing is started.

``resolve_parts`` finds the agent, the reward, the tasks and the model. ``load_chat`` loads a model's tokenizer and
renderer, ``check_sampling`` refuses settings under which every request would fail, and ``default_tasks`` says when an
agent is trained on tasks that nobody chose for it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.clients import reach_loopback_directly
from agentrl.config.models import Config, ModelSection, TasksSection
from agentrl.environments import locate_agent
from agentrl.errors import ConfigError, GatewayError, about, one_line, shortened, shown
from agentrl.gateway.address import Address
from agentrl.gateway.contract import ModelRequest, SessionSettings
from agentrl.gateway.dialects.chat import ChatCompletions
from agentrl.gateway.dialects.fields import SAMPLING_FIELDS
from agentrl.gateway.dialects.overrides import ALIASES, apply_override
from agentrl.gateway.normalise import Normalisers
from agentrl.gateway.sampling import resolve_sampling
from agentrl.inference.adapter_folder import base_of, tokenizer_folder
from agentrl.inference.contract import Capabilities
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.plugins.entries import CORE, normalised
from agentrl.rewards import load_reward
from agentrl.rewards.scoring import Scorer
from agentrl.rollout.contract import AgentFacts, Executor
from agentrl.rollout.executors import build_executor
from agentrl.tasks import load_tasks
from agentrl.tasks.contract import TaskSet
from agentrl.tokens.renderer import Renderer
from agentrl.tokens.selection import load_renderer
from agentrl.training.backends import check_takes_weights, is_chat
from agentrl.training.checkpoints import Conversing, read_checkpoint
from agentrl.training.choices import with_learning_rate, with_suggestions
from agentrl.training.interrupts import run_to_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ANY_ENGINE",
    "Chat",
    "EpisodeParts",
    "Parts",
    "check_override",
    "check_sampling",
    "default_tasks",
    "load_chat",
    "resolve_episode_parts",
    "resolve_executor",
    "resolve_parts",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EpisodeParts:
    """What episodes need beside the model: the config with its agent located, and what its names stand for."""

    config: Config
    plugins: Plugins
    executor: Executor
    """Runs the agent."""
    score: Scorer | None
    """``None`` where the agent returns its own reward."""
    train_tasks: TaskSet
    eval_tasks: TaskSet | None
    normalisers: Normalisers
    """The rules for texts of the system."""


@dataclass(frozen=True, slots=True)
class Parts(EpisodeParts):
    """What a run needs: the parts of its episodes, and the model."""

    model_folder: Path
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    conversing: Conversing
    """The chat template and the date, which every checkpoint keeps."""


def resolve_parts(config: Config, plugins: Plugins, agent: Any = None, *, weights: Path | None = None) -> Parts:
    """Resolve every name of ``config``; ``agent`` may be the agent itself instead of a name.

    ``weights`` is the folder of a checkpoint that takes the place of the config's model, which is not looked for.

    An agent that lives in another environment is found there. Raises ``ConfigError`` or ``PluginError`` for the
    first name that stands for nothing, and for a backend whose model is no folder.
    """
    check_takes_weights(config, plugins)
    config = with_suggestions(config, plugins)
    common = resolve_episode_parts(config, plugins, agent)
    with about("model.name"):
        folder = find_model(plugins, config.model) if weights is None else weights
        config = _named(common.config, folder) if weights is None else common.config
        config = with_learning_rate(config, folder)
        chat = load_chat(folder, config.model)
    return Parts(
        config=config,
        plugins=plugins,
        executor=common.executor,
        score=common.score,
        train_tasks=common.train_tasks,
        eval_tasks=common.eval_tasks,
        normalisers=common.normalisers,
        model_folder=folder,
        tokenizer=chat.tokenizer,
        renderer=chat.renderer,
        conversing=chat.kept,
    )


def _named(config: Config, folder: Path) -> Config:
    """``config`` with the newest checkpoint where it names a run's folder, whose newest checkpoint may change."""
    if folder.parent.name != "checkpoints" or folder.parent.parent != Path(os.path.expanduser(config.model.name)):
        return config
    return config.naming("model", str(folder))


def resolve_episode_parts(config: Config, plugins: Plugins, agent: Any = None) -> EpisodeParts:
    """As ``resolve_parts``, without the model, which an endpoint serves."""
    check_override(config, chat=is_chat(config, plugins))
    Address.of(config.gateway)  # Raises for what no scheduler would mend.
    config = locate_agent(config, plugins) if agent is None else config
    return EpisodeParts(
        config=config,
        plugins=plugins,
        executor=resolve_executor(config, plugins, agent),
        score=None if config.reward is None else Scorer(load_reward(plugins, config.reward)),
        train_tasks=load_tasks(plugins, config.tasks.train, at="tasks.train"),
        eval_tasks=None if config.tasks.eval is None else load_tasks(plugins, config.tasks.eval, at="tasks.eval"),
        normalisers=Normalisers.build(plugins, config.gateway.normalise),
    )


def resolve_executor(config: Config, plugins: Plugins, agent: Any = None) -> Executor:
    """The executor of ``config``, which has found its agent where that is going to run.

    ``agent`` may be the agent itself instead of a name. Raises ``ConfigError`` or ``PluginError`` where there is no
    such agent or executor, the agent does not load, cannot be run there, or returns an answer that nothing scores.
    """
    if config.is_online and agent is None:
        raise ConfigError(
            "agent=online stands for sessions that people open, and is no agent that could be run",
            fix="train it with `agentrl train online`; to measure what it has learned, name an agent: agent=math",
            key="agent.name",
        )
    reach_loopback_directly()  # A client that the agent's module makes when it is imported is made below.
    executor = build_executor(config, plugins, agent)
    inspected = executor.inspect()
    facts = run_to_end(partial(_awaited, inspected)) if isinstance(inspected, Awaitable) else inspected
    if facts.returns_answer and config.reward is None:
        raise ConfigError(
            f"agent {config.agent.name!r} returns an answer, and no reward is set to score it",
            fix="set reward= to one of `agentrl list-rewards`, pkg.mod:Obj or file.py:Obj",
        )
    return executor


async def _awaited(facts: Awaitable[AgentFacts]) -> AgentFacts:
    return await facts


@dataclass(frozen=True, slots=True)
class Chat:
    """A model's tokenizer and renderer, and what a checkpoint keeps of them."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    kept: Conversing


def load_chat(folder: Path, model: ModelSection) -> Chat:
    """The tokenizer and renderer of the model in ``folder``, with the chat template and the date that ``model`` names.

    Where it names none, a checkpoint has those of its run. Raises ``ConfigError`` for a file that is no template, a
    date that is none, and what ``load_renderer`` refuses.
    """
    tokenizer = _tokenizer(folder)
    info = read_checkpoint(folder)
    file = None if model.chat_template is None else Path(os.path.expanduser(model.chat_template)).resolve()
    if file is not None:
        kept = tokenizer if info.chat_template is not None and _is_that(file, Path(info.chat_template)) else None
        tokenizer.chat_template = _template(file, kept)
    day = _day(model.date) if model.date is not None else None if info.date is None else _day(info.date)
    renderer = load_renderer(tokenizer, model.renderer, day=day, plain_text=model.control_tokens == "plain")
    source = info.chat_template if file is None else str(file)
    template = tokenizer.chat_template if source is not None else None
    written = None if renderer.day is None else renderer.day.isoformat()
    return Chat(tokenizer, renderer, Conversing(source, template, written))


def _is_that(file: Path, source: Path) -> bool:
    """Whether ``file`` is the ``source`` that a run was given. A missing file of its name counts: runs may be moved."""
    return file == source or (file.name == source.name and not file.exists())


def _template(file: Path, kept: PreTrainedTokenizerBase | None) -> str:
    """The text of ``file``, or of the template that a checkpoint ``kept`` when its run was given that file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if kept is not None:
            return str(kept.chat_template)
        raise ConfigError(
            f"model.chat_template: {file} cannot be read: {one_line(error)}",
            fix="name a file that holds a Jinja chat template",
        ) from error
    if not text.strip():
        raise ConfigError(f"model.chat_template: {file} is empty", fix="name a file that holds a Jinja chat template")
    if kept is not None and text != kept.chat_template:
        _log.warning("%s has changed since the checkpoint was saved, which keeps the template that it was", file)
        return str(kept.chat_template)
    return text


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"model.date: {text!r} is no date", fix="write it as 2026-01-31") from error


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {folder} has no tokenizer that loads: {shortened(one_line(error))}",
            fix="save the model's tokenizer beside its weights with `save_pretrained`",
        ) from error
    if (base := base_of(folder)) != folder:
        tokenizer.name_or_path = str(base)  # Where the model's config and the ends of its turns are.
    return tokenizer


ANY_ENGINE = Capabilities(1, 1, sampling=SAMPLING_FIELDS | {"top_logprobs"})
"""An engine that can do everything: a request that even it refuses is refused by every engine."""


def check_override(config: Config, *, chat: bool = False) -> None:
    """Raise ``ConfigError``, naming the key, where no call could be answered as asked under ``rollout.override``.

    ``chat`` says that the backend is one for messages, to whose endpoint a field may mean something.
    """
    ChatCompletions.check_override(config.rollout.override, relayed=chat)


def check_sampling(config: Config, capabilities: Capabilities, *, trains: bool) -> None:
    """Raise ``ConfigError`` where the gateway would refuse every call of a session for what the config sets.

    ``trains`` says whether there are training sessions beside those of evaluation.
    """
    if trains and config.rollout.constrained == "train" and not capabilities.masked_logprobs:
        raise ConfigError(
            f"rollout.constrained=train cannot be with inference.backend={config.inference.backend.name!r}: its "
            "log-probabilities under a grammar are not known to be those that the learner would compute",
            fix="set rollout.constrained=exclude, or inference.backend=torch",
        )
    request = _overridden(config)
    for key, settings in _sessions(config, trains):
        try:
            resolve_sampling(request, settings, capabilities, room=1, seed=0, stop_ids=frozenset())
        except GatewayError as error:
            raise _refused(config, key, error) from error


def _sessions(config: Config, trains: bool) -> Iterator[tuple[str, SessionSettings]]:
    """Each kind of session that there will be, and the key of its temperature."""
    if trains:
        yield "rollout.temperature", SessionSettings(training=True, temperature=config.rollout.temperature)
    if config.tasks.eval is not None:
        yield "evaluation.temperature", SessionSettings(training=False, temperature=config.evaluation.temperature)


def _overridden(config: Config) -> ModelRequest:
    """A request that sets no field itself, after ``rollout.override`` has been applied."""
    fields, _ = apply_override({}, config.rollout.override)
    count = fields.get("top_logprobs", 0)
    return ModelRequest(fields, [], fields=fields, top_logprobs=count if isinstance(count, int) else 0)


def _refused(config: Config, key: str, error: GatewayError) -> ConfigError:
    section: Any = getattr(config, key.partition(".")[0])
    value = section.temperature
    for name, replacement in config.rollout.override.items():
        if replacement is not None and ALIASES.get(name, name) == error.param:
            key, value = f"rollout.override.{name}", replacement
    backend = config.inference.backend.name
    return ConfigError(
        f"with {key}={shown(value, 80)} and inference.backend={backend!r} every call would be refused: {error.message}",
        fix=f"change {key}, or drop it",
    )


_SHOWN = 80


def default_tasks(parts: EpisodeParts) -> str | None:
    """A note that an agent is trained on the default tasks; ``None`` where somebody chose the tasks.

    The bundled agents are made for the default tasks.
    """
    config = parts.config
    if config.tasks.train != TasksSection().train or _is_bundled(parts):
        return None
    example = json.dumps(parts.train_tasks[0], ensure_ascii=False)
    return (
        f"tasks.train is the default: {config.agent.name} is trained on {config.tasks.train.name}, {example:.{_SHOWN}} "
        "and the like (set tasks.train to a file of tasks, or to one of `agentrl list-tasks`)"
    )


def _is_bundled(parts: EpisodeParts) -> bool:
    found = [entry for entry in parts.plugins.entries("agents") if entry.is_called(parts.config.agent.name)]
    return any(normalised(entry.distribution.name) == CORE for entry in found)
