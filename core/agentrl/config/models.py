"""The configuration of a run: a model a section, and a field a key.

Every key has a default, and the defaults are the quickstart. The docstring under a field is its help text. The larger
sections have modules of their own: ``training`` and ``health``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializationInfo,
    Strict,
    model_serializer,
    model_validator,
)

from agentrl.config.health import HealthSection
from agentrl.config.prices import PricesSection
from agentrl.config.section import OptionalPart, Part, PartModel, Section, Selectable, named
from agentrl.config.training import TrainingSection
from agentrl.errors import ConfigError

__all__ = [
    "ONLINE",
    "AgentSection",
    "Config",
    "EvaluationSection",
    "GatewaySection",
    "InferenceSection",
    "ModelSection",
    "ReplaySection",
    "RolloutSection",
    "RunSection",
    "SchedulerModel",
    "ServeSection",
    "SftSection",
    "TasksSection",
]

ONLINE = "online"
"""The name of the agent of a run that takes its episodes from sessions that it serves."""


class RunSection(Section):
    name: str | None = None
    """Name of the run's folder. Null makes one from the agent's name and the time."""
    dir: Annotated[Path, Strict(False)] = Path("runs")
    """Folder in which run folders are made."""
    hook_timeout: float = Field(60, gt=0)
    """Seconds that one call of a tracker or of a plugin's hook may take. One that takes longer is called no more in the
    run, with a warning, and the run goes on. The end of the run waits as long for the calls that are left."""


class AgentSection(Section):
    name: str
    """The agent: a registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`. `online` runs no
    agent's code: the episodes are sessions that the run serves, as `agentrl serve` does."""
    python: Annotated[Path | None, Strict(False)] = None
    """The Python interpreter that runs the agent, or the name of an environment that `agentrl env create` made. The
    interpreter needs agentrl-core and the agent, but no torch. Null runs the agent with the interpreter of this
    process."""
    env: list[str] = Field([])
    """Environment variables that worker processes get in subproc mode, beside harmless ones such as PATH: `NAME` passes
    on the variable of this process, `NAME=value` sets it."""
    outcomes: list[str] = Field([])
    """Exceptions of the agent's framework that mean a mistake of the policy, such as
    `pydantic_ai.exceptions:UnexpectedModelBehavior`. An episode that ends with one of them, or with a subclass, is an
    outcome with a reward, as with `PolicyError`, and not a failure."""
    kwargs: dict[str, Any] = Field({})
    """Arguments of the agent's `__init__` or `run`, beside the task and the connection to the model."""


class ModelSection(Section):
    name: str
    """The model: a bundled name, a local folder, a run (`runs/NAME`) or its checkpoint, or a Hugging Face id."""
    renderer: str = "auto"
    """How messages become token ids: `auto`, or the name of a renderer of the `renderers` package."""
    chat_template: Annotated[Path | None, Strict(False)] = None
    """A file with a Jinja chat template that replaces the model's own, for models whose template lacks something, such
    as tools. Every checkpoint keeps a copy. Null uses the model's own."""
    control_tokens: Literal["keep", "plain"] = "keep"
    """How control tokens such as `<|im_end|>` and `<tool_call>` are read in texts of users, systems and tools: `keep`
    reads them as control tokens, as inference servers do, and counts them; `plain` reads them as text. In texts of the
    policy they are always text."""
    date: str | None = None
    """The date, such as `2026-01-31`, for chat templates that write one into the prompt. Null uses the date of the
    checkpoint, or today's for a model that is no checkpoint."""


class TasksSection(Section):
    train: Part = PartModel(name="arithmetic")
    """The tasks to train on: a registered name, a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), a folder of
    such files or of `save_to_disk`, or `{name: …, its keys}`."""
    eval: OptionalPart = PartModel(name="arithmetic-heldout")
    """The held-out tasks to evaluate on, named as `tasks.train` is. Null evaluates nothing. The default is
    `arithmetic-heldout` where `arithmetic` is trained on, and null for all other tasks."""

    @model_validator(mode="before")
    @classmethod
    def _held_out_of_what_is_trained(cls, values: Any) -> Any:
        """The default held-out tasks are those of the default training tasks, and of no others."""
        if not isinstance(values, dict):
            return values
        train, held_out = (cls.model_fields[name].default.name for name in ("train", "eval"))
        given = values.get("train", train)
        name = given.get("name", train) if isinstance(given, dict) else getattr(given, "name", given)
        if name != train:
            return {"eval": None, **values}
        if isinstance(keys := values.get("eval"), dict):
            return {**values, "eval": {"name": held_out, **keys}}
        return values


class OverflowSection(Section):
    reward: float | None = 0.0
    """The reward of an episode in which the policy ran into a limit. Null rejects it, as `rollout.on_overflow=reject`
    does."""

    @model_serializer
    def _short(self) -> Any:
        return "reject" if self.reward is None else {"reward": self.reward}


def _overflow(value: Any) -> Any:
    if value == "reject":
        return {"reward": None}
    if isinstance(value, dict) and value.get("name") == "reject":  # As it is merged where keys were set over a name.
        return {key: held for key, held in value.items() if key != "name"}
    if value is None or isinstance(value, str | int | float):
        given = repr(value) if isinstance(value, str) else json.dumps(value)
        raise ValueError(f"should be reject, or {{reward: 0}} with any number, not {given}")
    return value


class RolloutSection(Section):
    group_size: int = Field(8, ge=1)
    """Episodes of one task that are compared with each other."""
    tasks_per_step: int = Field(8, ge=1)
    """Tasks in one optimiser step."""
    concurrency: int = Field(64, ge=1)
    """Most episodes that run at the same time."""
    max_waiting: int | None = Field(None, ge=1)
    """How many calls may wait for the engine before further episodes wait to start; calls of episodes that have started
    are never held back. Null is a quarter of what the engine answers at once."""
    max_staleness: int = Field(0, ge=0)
    """How many optimiser steps older than the weights that a step changes its oldest token may be. 0 rolls out and
    learns by turns; above, episodes go on while the learner learns, and while the weights change. The default of
    `agent=online` is 4."""
    on_stale: Literal["wait", "mask", "drop"] = "wait"
    """What is done with an episode that would become older than `rollout.max_staleness`: `wait` has the learner wait
    for it, so that nothing is lost; `mask` leaves its older tokens out of the loss; `drop` leaves its group out, and
    rolls out the group's task again. `agent=online` takes no `wait`, and its default is `mask`."""
    dynamic_sampling: int = Field(0, ge=0)
    """How many groups a step may replace that the algorithm's filter leaves out, as a multiple of
    `rollout.tasks_per_step`. 0 trains on what is left."""
    mode: Part = PartModel(name="auto")
    """The executor that runs agents: `inline` as coroutines in the trainer's process, or `subproc` in worker processes,
    where an agent may block, be synchronous or read its endpoint from environment variables. `auto` is `subproc` for an
    agent that has an interpreter of its own (`agent.python`), else `inline`. A plugin may register others."""
    max_workers: int | None = Field(None, ge=1)
    """Most worker processes in subproc mode. Null allows one for each CPU."""
    episodes_per_worker: int | None = Field(None, ge=1)
    """Most episodes that one worker process runs at the same time. Null means 1 for a synchronous agent; for other
    agents `rollout.concurrency` is divided among the workers."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of requests that set none."""
    max_tokens: int | None = Field(128, ge=1)
    """Most tokens of one completion, for requests that set no limit. Null allows what the context has room for."""
    episode_timeout: float = Field(600, gt=0)
    """Seconds after which an episode is ended and counted as failed."""
    max_attempts: int = Field(3, ge=1)
    """How often an episode is tried when something around the agent breaks."""
    failure_budget: float = Field(0.5, ge=0, le=1)
    """Share of recent episodes that may fail, counted over as many episodes as a step has, and at least 16. The run
    stops when more of them fail, or when all episodes of a step or an evaluation do."""
    on_overflow: Annotated[OverflowSection, BeforeValidator(_overflow)] = OverflowSection()
    """What becomes of an episode in which the policy ran into a limit: a prompt that outgrew the context, a turn or
    token limit that the agent reports, or more tokens in one conversation than `training.tokens_per_batch`.
    `{reward: 0}`, or another number, is its reward; `reject` leaves it out of its group's comparison."""
    constrained: Literal["exclude", "train"] = "exclude"
    """What is done with tokens that a grammar constrained: those of forced tool calls, of response formats, and of the
    arguments of strict tools. `exclude` leaves them out of the loss, and `train` trains those where the grammar left a
    choice, under the distribution of the tokens that it allowed."""
    override: dict[str, Any] = Field({})
    """Request fields to replace in every request of the agent, or to drop where the value is null, such as
    `{temperature: 1.0, top_p: null}`. `strict: false` changes the tools of the request. Fields that cannot be
    overridden (`stream`, `messages`, `model` and unknown ones) are refused."""


class GatewaySection(Section):
    normalise: list[Part] = Field([PartModel(name="claude-code-billing-header")])
    """Rules that replace what changes from request to request in texts of the system, such as the time, before they
    are rendered: names of `agentrl list-normalisers`, or `pkg.mod:Obj` or `file.py:Obj`, applied in their order. `[]`
    replaces nothing."""
    host: str | None = None
    """The address at which the gateway listens for agents in other processes. Null is 127.0.0.1 or, where the scheduler
    may run agents on other machines, the address at which these reach this one. At any address but the loopback
    interface's, a call needs its session's key."""
    port: int = Field(0, ge=0, le=65535)
    """The port at which the gateway listens. 0 takes a free one."""
    url: str | None = None
    """Where agents reach the gateway, if not at host and port, such as from outside of a container."""
    certificate: Annotated[Path | None, Strict(False)] = None
    """A file in PEM format with the certificate, and its chain, with which the gateway speaks TLS: a run's, and that of
    `agentrl serve` and of `agent=online`. Null speaks HTTP without TLS."""
    certificate_key: Annotated[Path | None, Strict(False)] = None
    """A file in PEM format with the private key of `gateway.certificate`, without a password. Null where the
    certificate's file holds it too."""


class ServeSection(Section):
    """Where and to whom sessions are served, by `agentrl serve` and by a run of `agent=online`."""

    host: str = "127.0.0.1"
    """The address to serve at. One that lets other machines in needs an admin key."""
    port: int = Field(8000, ge=0, le=65535)
    """The port to serve at. 0 takes a free one."""
    url: str | None = None
    """Where clients reach the service, if not at host and port, such as behind a proxy."""
    max_sessions: int = Field(1000, ge=1)
    """Most open sessions. A further one is a 429."""
    max_waiting: int = Field(256, ge=0)
    """Most calls that wait for the model beside those that it answers. A further one is a 429."""
    idle: float = Field(3600, gt=0, le=1.0e9)
    """Seconds for which a session is kept that nobody uses. Without a reward it has failed then."""
    max_body: float = Field(32, gt=0, le=1.0e9)
    """Largest body of a request, in MiB. A larger one is a 413."""
    max_header: int = Field(64, ge=1)
    """Largest header of a request, in KiB. A larger one is a 431."""
    header_timeout: float = Field(30, gt=0, le=1.0e9)
    """Seconds that a client may take to send a header. A slower one is a 408."""
    body_timeout: float = Field(120, gt=0, le=1.0e9)
    """Seconds that a client may take to send a body. A slower one is a 408."""


class InferenceSection(Section):
    backend: Part = PartModel(name="torch")
    """The inference engine."""
    concurrency: int | None = Field(None, ge=1)
    """Most completions that the engine samples at the same time; further calls wait for one to end. Null is
    `rollout.concurrency`. Where agents spend most of their time in tools, fewer leave more memory to each."""
    timeout: float = Field(600, gt=0)
    """Seconds that the engine may take to start, and to load new weights, and that an endpoint may take to answer a
    call."""
    in_flight: Literal["keep", "recompute"] = "keep"
    """What new weights do with completions under way: `keep` goes on with the keys and values of their tokens so far;
    `recompute` computes these anew, so that later log-probabilities are the new weights' own. No token is lost."""


class SftSection(Section):
    """What `agentrl sft` imitates, and how much of it."""

    data: str | None = None
    """The conversations to imitate: a file of JSON lines, each with `messages` in the form of the OpenAI API and
    perhaps `tools`, or a run (`runs/NAME`), of which the episodes of training are imitated."""
    min_reward: float | None = None
    """Least reward of the episodes of a run that are imitated. Null imitates all that have a reward."""
    loss: Literal["all", "last"] = "all"
    """Which messages of the assistant are trained: `all`, or only the `last` one of each conversation."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the conversations that is held out, chosen by `seed`, to measure the loss on. 0 holds out none."""
    held_out_data: str | None = None
    """Other conversations to measure the loss on, named as `sft.data` is, in place of a share."""
    epochs: int | None = Field(None, ge=1)
    """How often each conversation is trained. Null trains `training.steps` steps where that is set, and else each
    conversation once."""
    conversations_per_step: int = Field(16, ge=1)
    """Conversations in one optimiser step."""
    tokens_per_step: int | None = Field(None, ge=1)
    """Trained tokens in one optimiser step, in place of `sft.conversations_per_step`: it takes conversations until one
    more would make it more tokens."""


class ReplaySection(Section):
    """What `agentrl replay` trains from."""

    run: str | None = None
    """The run whose stored episodes are trained, in the order in which its steps took them."""
    answer: Literal["stored", "last-message"] = "stored"
    """What another reward scores: the answer that the store holds, or the text of the last message that the policy
    wrote, for runs whose agent returned its own reward."""


class EvaluationSection(Section):
    every: int = Field(20, ge=0)
    """Steps between evaluations during training. 0 evaluates only before and after it."""
    tasks: int = Field(128, ge=1)
    """Number of held-out tasks in an evaluation."""
    samples_per_task: int = Field(1, ge=1)
    """Sampled episodes of each task."""
    overlap: bool = False
    """Whether episodes of training run beside an evaluation. Otherwise those in flight end first, and none starts
    before the evaluation is over. The weights change in neither case."""
    temperature: float = Field(1.0, ge=0)
    """Temperature of the sampled episodes. One greedy episode of each task is run as well."""


class SchedulerModel(Selectable):
    """The scheduler, whose name is called its type, and beside it the keys that it takes."""

    type: str
    """`local` for this process, another registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`."""

    @property
    def name(self) -> str:
        """The ``type``, under the name that other parts have it by."""
        return self.type

    @model_serializer
    def _whole(self, info: SerializationInfo) -> Any:
        return {"type": self.type, **self._keys(info)}


def _typed(value: Any) -> Any:
    """``{type: …}`` for a scheduler that is written as its type alone, or with its type called a name."""
    if isinstance(value, dict) and "type" not in value and "name" in value:
        return {"type": value["name"], **{key: held for key, held in value.items() if key != "name"}}
    return {"type": value} if isinstance(value, str) else value


_ONLINE_DEFAULTS: dict[str, dict[str, Any]] = {
    "rollout": {"on_stale": "mask", "max_staleness": 4},
    "tasks": {"eval": None},
}
"""Defaults of ``agent=online`` that are not those of other agents."""

_KEY = re.compile(r"(?:with |there is no key ')?([a-z_]+(?:\.\w+)+|[a-z_]+(?==))")
"""The key at the beginning of an error's message."""


class _WrittenAt(dict[str, str]):
    """Where values were written, by dotted key. Configurations of equal values are equal wherever those are from."""

    def nearest(self, key: str) -> str | None:
        """Where ``key`` was written, or the name of the part that it belongs to."""
        while key:
            for each in (key, f"{key}.name", f"{key}.type"):
                if each in self:
                    return self[each]
            key = key.rpartition(".")[0]
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WrittenAt)

    __hash__ = None


class Config(Section):
    """Everything about a run. `agentrl train --dry-run` shows where each value came from."""

    run: RunSection = RunSection()
    """The run's folder."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the order of tasks, of initialisation and of sampling."""
    agent: Annotated[AgentSection, BeforeValidator(named)] = AgentSection(name="math")
    """The agent whose model is trained."""
    model: Annotated[ModelSection, BeforeValidator(named)] = ModelSection(name="tiny")
    """The model to train."""
    tasks: TasksSection = TasksSection()
    """What the agent is trained and evaluated on."""
    reward: OptionalPart = None
    """The reward function that scores what the agent returns. Null for an agent that returns its own reward."""
    rollout: RolloutSection = RolloutSection()
    """How episodes are run."""
    gateway: GatewaySection = GatewaySection()
    """What agents send their requests to."""
    serve: ServeSection = ServeSection()
    """Where `agent=online` and `agentrl serve` serve sessions."""
    inference: InferenceSection = InferenceSection()
    """What samples the model's tokens."""
    algorithm: Part = PartModel(name="grpo")
    """The algorithm: a preset such as `grpo`, or `{name: grpo, advantage: …, credit: …, objective: …}`."""
    training: TrainingSection = TrainingSection()
    """How the model's weights are changed."""
    sft: SftSection = SftSection()
    """What `agentrl sft` imitates."""
    replay: ReplaySection = ReplaySection()
    """What `agentrl replay` trains from."""
    health: HealthSection = HealthSection()
    """What is done when the metrics show that learning is in trouble: for each rule `off`, `warn`, `stop`, `rollback`
    (to the best checkpoint), or `{action: warn, threshold: 0.2}`."""
    evaluation: EvaluationSection = EvaluationSection()
    """How the model is measured on held-out tasks."""
    scheduler: Annotated[SchedulerModel, BeforeValidator(_typed)] = SchedulerModel(type="local")
    """Where the run takes place."""
    trackers: list[Part] = Field([])
    """Where metrics are sent, beside the run's folder."""
    prices: PricesSection = PricesSection()
    """What tokens and time cost, for the [money](metrics.md#cost) that a run says it has taken. Without prices there is
    none."""

    _written_at: _WrittenAt = PrivateAttr(default_factory=lambda: _WrittenAt())

    @model_validator(mode="before")
    @classmethod
    def _of_people(cls, values: Any) -> Any:
        """People cannot be waited for, and bring their own tasks: other defaults hold for ``agent=online``."""
        if not isinstance(values, dict):
            return values
        agent = values.get("agent")
        name = agent.get("name") if isinstance(agent, dict) else getattr(agent, "name", agent)
        if name != ONLINE:
            return values
        given = {section: values.get(section, {}) for section in _ONLINE_DEFAULTS}
        return values | {
            section: {**_ONLINE_DEFAULTS[section], **keys} for section, keys in given.items() if isinstance(keys, dict)
        }

    def remember(self, written_at: Mapping[str, str]) -> None:
        """Keep where values were written, by dotted key, for ``naming_sources``."""
        self._written_at = _WrittenAt(written_at)

    @property
    def written_at(self) -> Mapping[str, str]:
        """Where values were written, by dotted key, as ``remember`` was told; defaults are left out."""
        return self._written_at

    @contextlib.contextmanager
    def naming_sources(self) -> Iterator[None]:
        """Within it, a ``ConfigError`` about a key says where the key was written, such as its file and line.

        The key is the error's ``key``, or the one that its message begins with.
        """
        try:
            yield
        except ConfigError as error:
            named = _KEY.match(error.message)
            key = error.key or (named[1] if named else "")
            source = self._written_at.nearest(key)
            if source is not None and not error.message.startswith(source):
                error.message = f"{source}: {error.message}"
            raise

    def naming(self, section: Literal["agent", "model"], name: str) -> Config:
        """A copy with another agent or model, which nobody has written down anywhere."""
        changed: dict[str, Any] = {section: getattr(self, section).model_copy(update={"name": name})}
        if section == "agent" and name == ONLINE:
            for other, defaults in _ONLINE_DEFAULTS.items():
                unset = {key: value for key, value in defaults.items() if f"{other}.{key}" not in self._written_at}
                changed[other] = getattr(self, other).model_copy(update=unset)
        copy = self.model_copy(update=changed)
        copy.remember({key: source for key, source in self._written_at.items() if key != f"{section}.name"})
        return copy

    def setting(self, section: str, values: Section) -> Config:
        """A copy with another ``section``, which nobody has written down anywhere."""
        copy = self.model_copy(update={section: values})
        copy.remember(self._written_at)
        return copy

    @property
    def is_online(self) -> bool:
        """Whether the episodes are sessions that the run serves, so that no agent's code runs."""
        return self.agent.name == ONLINE

    @property
    def is_imitation(self) -> bool:
        """Whether the run imitates conversations, as `agentrl sft` does."""
        return self.sft.data is not None

    @property
    def is_replay(self) -> bool:
        """Whether the run trains from the stored episodes of another, as `agentrl replay` does."""
        return self.replay.run is not None

    @property
    def runs_in_workers(self) -> bool:
        """Whether agents run in processes of their own, and not on the rollout's event loop.

        With `rollout.mode=auto` a scheduler of a plugin may choose otherwise, as ``ray`` does with `scheduler.workers`.
        """
        mode = self.rollout.mode.name
        return self.agent.python is not None if mode == "auto" else mode != "inline"
