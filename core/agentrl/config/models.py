"""The configuration of a run, one section a top-level key.

Every key has a default, and the defaults are the quickstart. The docstring under a field is its help
text. A *part* is anything a plugin may provide: written as a name, or as ``{name: …, its keys}``; the
keys are validated by the part itself once it is loaded.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    Strict,
    model_serializer,
    model_validator,
)

from agentrl.errors import ConfigError

__all__ = [
    "AS_WRITTEN",
    "AgentSection",
    "Config",
    "EvaluationSection",
    "InferenceSection",
    "ModelSection",
    "OptionalPart",
    "Part",
    "PartModel",
    "RolloutSection",
    "RunSection",
    "SchedulerModel",
    "Section",
    "Selectable",
    "TasksSection",
    "TrainingSection",
    "Written",
    "check_trainable",
    "plain",
]

AS_WRITTEN = {"as_written": True}
"""The context of a dump that keeps what was written as it was written."""


class Section(BaseModel):
    """A group of keys; one that it does not know is an error, and so is a value of the wrong type.

    Types are strict: `true` is no number and `8.0` no integer, but an integer is a float. Numbers are finite.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
        ser_json_inf_nan="constants",
    )


class Settings(Section):
    """The base of the ``Settings`` that a part declares for the keys beside its name; checked as strictly as ours.

    The docstring under an attribute is the key's help text.
    """


class Selectable(BaseModel):
    """What is selected by a name, with the keys beside it that the part so named takes."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants")

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside the name, as YAML reads them."""
        options: dict[str, Any] = plain(self.written)
        return options

    @property
    def written(self) -> dict[str, Any]:
        """The same with what the part itself may take for text as ``Written``."""
        return dict(self.model_extra or {})

    def _keys(self, info: SerializationInfo) -> dict[str, Any]:
        return self.written if info.context == AS_WRITTEN else self.options


class PartModel(Selectable):
    """A selectable part: its name, and beside it the keys that the part itself takes."""

    name: str
    """A registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`."""

    @model_serializer
    def _short(self, info: SerializationInfo) -> Any:
        """A part without keys is written as its name."""
        keys = self._keys(info)
        return {"name": self.name, **keys} if keys else self.name


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Part = Annotated[PartModel, BeforeValidator(_named)]
OptionalPart = Annotated[PartModel | None, BeforeValidator(_named)]


class RunSection(Section):
    name: str | None = None
    """Name of the run folder; by default the agent and the time."""
    dir: Annotated[Path, Strict(False)] = Path("runs")
    """Where run folders are made."""


class AgentSection(Section):
    name: str
    """A registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`."""
    python: Annotated[Path | None, Strict(False)] = None
    """The interpreter that runs the agent, which needs agentrl-core and the agent but no torch, or the name of an
    environment that `agentrl env create` made; null for this one."""
    env: list[str] = []
    """Environment variables that the agent's processes get in subproc mode beside harmless ones such as PATH:
    `NAME` inherits this process's, `NAME=value` sets it."""
    outcomes: list[str] = []
    """Exceptions of the agent's framework that tell what the policy did wrong, such as
    `pydantic_ai.exceptions:UnexpectedModelBehavior`: an episode that one of them ends, or a subclass, is an outcome,
    as with `PolicyError`, and no failure."""
    kwargs: dict[str, Any] = {}
    """What the agent's `__init__` or `run` takes beside the task and its connection."""


class ModelSection(Section):
    name: str
    """A bundled name, a local folder or a Hugging Face id."""
    renderer: str = "auto"
    """How messages become token ids: `auto`, or the name of a renderer of the `renderers` package."""
    chat_template: Annotated[Path | None, Strict(False)] = None
    """A file with a Jinja chat template for models whose own lacks something, such as tools; every checkpoint keeps
    it. Null for the model's own."""
    control_tokens: Literal["keep", "plain"] = "keep"
    """What `<|im_end|>`, `<tool_call>` and the like are in texts of users, systems and tools: the control tokens that
    servers read them as, counted, or `plain` text. What the policy itself spells out in a text stays text."""
    date: str | None = None
    """The date, as `2026-01-31`, in every prompt of chat templates that write one; null for that of the checkpoint,
    else today's."""


class TasksSection(Section):
    train: Part = PartModel(name="arithmetic")
    """The tasks to train on: a name, a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), a folder of such or of
    `save_to_disk`, or `{name: …, its keys}`."""
    eval: OptionalPart = PartModel(name="arithmetic-heldout")
    """Held-out tasks that evaluation runs on; null for none. By default those of `arithmetic` where that is trained on,
    and none where `tasks.train` is anything else."""

    @model_validator(mode="before")
    @classmethod
    def _held_out_of_what_is_trained(cls, values: Any) -> Any:
        """Nobody's tasks are measured on another's: the default goes with its own training set alone."""
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


class RolloutSection(Section):
    group_size: int = Field(8, ge=1)
    """Episodes of one task that are compared with each other."""
    tasks_per_step: int = Field(8, ge=1)
    """Tasks in one optimiser step."""
    concurrency: int = Field(64, ge=1)
    """Episodes that run at once."""
    mode: Part = PartModel(name="auto")
    """The executor that runs agents: `inline`, as coroutines in the rollout process, or `subproc`, in worker
    processes, where they may block, be synchronous and read their endpoint from the environment; `auto` is inline
    unless the agent has an interpreter of its own. A plugin may register others."""
    max_workers: int | None = Field(None, ge=1)
    """Most worker processes in subproc mode; null for one a CPU."""
    episodes_per_worker: int | None = Field(None, ge=1)
    """Most episodes that a worker process runs at once; null for 1 of a synchronous agent, and of others for
    what `concurrency` leaves to each."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of requests that set none."""
    max_tokens: int | None = Field(128, ge=1)
    """Most tokens of one completion where a request sets none; null for what the context leaves."""
    episode_timeout: float = Field(600, gt=0)
    """Seconds that an episode may take."""
    max_attempts: int = Field(3, ge=1)
    """How often an episode is run when something around the agent breaks."""
    failure_budget: float = Field(0.5, ge=0, le=1)
    """Share of the most recent episodes that may fail, a step's worth of them and at least 16; the run stops when more
    do, or when all episodes of a step or an evaluation fail."""
    override: dict[str, Any] = {}
    """Request fields to replace, or to drop where null, whatever the agent asks for, and `strict`, that of its tools:
    `{temperature: 1.0, top_p: null, strict: false}`. What it cannot be (`stream`, `messages`, `model`, an unknown
    field) is refused by name."""


class InferenceSection(Section):
    backend: Part = PartModel(name="torch")
    """The inference engine."""
    timeout: float = Field(600, gt=0)
    """Seconds that the engine may take to start or to take new weights, and an endpoint to answer a call."""


class TrainingSection(Section):
    steps: int = Field(60, ge=0)
    """Optimiser steps."""
    learning_rate: float = Field(1.0e-4, ge=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up; all but `constant` end at zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Most tokens in one forward pass; a step takes as many passes as its tokens need."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    device: str = "auto"
    """Where to train: `auto`, `cpu`, `cuda` or `cuda:N`."""
    checkpoint_every: int = Field(20, ge=0)
    """Steps between checkpoints; 0 for one at the end only."""


class EvaluationSection(Section):
    every: int = Field(20, ge=0)
    """Steps between evaluations during training; 0 for before and after only."""
    tasks: int = Field(128, ge=1)
    """How many held-out tasks are run."""
    samples_per_task: int = Field(1, ge=1)
    """Episodes of each task."""
    temperature: float = Field(1.0, ge=0)
    """Temperature of the sampled evaluation; a greedy one runs beside it."""


class SchedulerModel(Selectable):
    """Where a run is placed: a registered scheduler, called its type, and beside it the keys that it takes."""

    type: str
    """`local` for this process, another registered name, `dist/name`, `pkg.mod:Obj`, `pkg.mod.Obj` or `file.py:Obj`."""

    @property
    def name(self) -> str:
        """The same as ``type``, as other parts are named."""
        return self.type

    @model_serializer
    def _whole(self, info: SerializationInfo) -> Any:
        return {"type": self.type, **self._keys(info)}


def _typed(value: Any) -> Any:
    """The type where it is written alone, or became a part's name when keys were put beside it."""
    if isinstance(value, dict) and "type" not in value and "name" in value:
        return {"type": value["name"], **{key: held for key, held in value.items() if key != "name"}}
    return {"type": value} if isinstance(value, str) else value


_KEY = re.compile(r"(?:with |there is no key ')?([a-z_]+(?:\.\w+)+|[a-z_]+(?==))")
"""How a message begins that is about a key."""


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
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of task order, initialisation and sampling."""
    agent: Annotated[AgentSection, BeforeValidator(_named)] = AgentSection(name="math")
    """The agent whose model is trained."""
    model: Annotated[ModelSection, BeforeValidator(_named)] = ModelSection(name="tiny")
    """The model to train."""
    tasks: TasksSection = TasksSection()
    reward: OptionalPart = None
    """Scores what the agent returns; null where the agent returns its own reward."""
    rollout: RolloutSection = RolloutSection()
    inference: InferenceSection = InferenceSection()
    algorithm: Part = PartModel(name="grpo")
    """A preset such as `grpo`, or `{name: grpo, advantage: …, credit: …, objective: …}`."""
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    scheduler: Annotated[SchedulerModel, BeforeValidator(_typed)] = SchedulerModel(type="local")
    """Where the run is placed: `local` is this process."""
    trackers: list[Part] = []
    """Where metrics go beside the run folder."""

    _written_at: _WrittenAt = PrivateAttr(default_factory=lambda: _WrittenAt())

    def remember(self, written_at: Mapping[str, str]) -> None:
        """Keep where values were written, by dotted key, for ``naming_sources``."""
        self._written_at = _WrittenAt(written_at)

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
        changed = getattr(self, section).model_copy(update={"name": name})
        copy = self.model_copy(update={section: changed})
        copy.remember({key: source for key, source in self._written_at.items() if key != f"{section}.name"})
        return copy

    @property
    def runs_in_workers(self) -> bool:
        """Whether agents run in processes of their own, and not on the rollout's event loop."""
        mode = self.rollout.mode.name
        return self.agent.python is not None if mode == "auto" else mode != "inline"


class Written:
    """What `1000` or `null` may mean is known once the key is: see ``agentrl.config.keys``.

    Equal to what its value is equal to.
    """

    # No dataclass, which pydantic would take apart.
    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("text", "value")

    def __init__(self, text: str, value: Any) -> None:
        self.text = text
        self.value = value

    def __eq__(self, other: object) -> bool:
        return bool(plain(self) == plain(other))

    def __repr__(self) -> str:
        return self.text


def plain(value: Any) -> Any:
    """``value`` as YAML reads it where nobody asks for text."""
    if isinstance(value, Written):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list) else value


def check_trainable(config: Config) -> None:
    """Raise ``ConfigError`` for a configuration that cannot learn, though an evaluation may run with it."""
    override = config.rollout.override.get("temperature")
    temperature = config.rollout.temperature if override is None else override
    if temperature == 0:
        key = "rollout.temperature" if override is None else "rollout.override.temperature"
        raise ConfigError(
            f"{key}=0 samples all episodes of a group alike, so nothing can be learned from comparing them",
            fix=f"set {key} above 0",
        )
