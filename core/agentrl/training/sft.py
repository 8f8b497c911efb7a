"""Supervised fine-tuning: from the conversations that a config names to a run that imitates them.

The conversations are read, rendered and checked before anything starts. The run is one as any other: it has a folder,
metrics, checkpoints and a summary, and goes on after a kill where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agentrl.algorithms.building import build_algorithm
from agentrl.algorithms.contract import Algorithm
from agentrl.config.models import Config, SftSection
from agentrl.config.section import PartModel
from agentrl.costs.cost import Cost
from agentrl.errors import ConfigError, RunError, near_files
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.reporting.contract import Reporter
from agentrl.reporting.reporter import Reporters
from agentrl.reporting.trackers import Trackers
from agentrl.runs.contract import MetricsLine, Summary
from agentrl.runs.folder import RunFolder, write_atomically
from agentrl.runs.metrics import MetricsReader, cost_of, cut_after
from agentrl.runs.reader import Run, open_run
from agentrl.runs.store import EpisodeStore
from agentrl.training.checkpoints import Conversing, read_checkpoint
from agentrl.training.choices import with_learning_rate
from agentrl.training.course import Course, check_learner, recording
from agentrl.training.dialogues import read_dialogues
from agentrl.training.examples import Example, digest_of, example_of_dialogue, example_of_episode
from agentrl.training.interrupts import Interrupts
from agentrl.training.parts import Chat, load_chat
from agentrl.training.plan import planned
from agentrl.training.recorder import RunRecorder
from agentrl.training.resume import ResumePoint
from agentrl.training.sft_loop import Order, SftLoop

if TYPE_CHECKING:
    from agentrl.training.hosting import Hosting

__all__ = ["SftParts", "check_vocabulary", "fine_tune", "resolve_sft"]

_PRESET = "sft"
_SHARE = 1 << 32


@dataclass(frozen=True, slots=True)
class SftParts:
    """What a run that imitates conversations needs."""

    config: Config
    """With ``training.steps`` as many as the run is to do."""
    plugins: Plugins
    algorithm: Algorithm
    model_folder: Path
    conversing: Conversing
    train: Sequence[Example]
    held_out: Sequence[Example]
    order: Order
    left_out: Counter[str]
    """How many conversations are not imitated, by why: ``over_long`` or ``without_tokens``."""

    def told(self) -> str:
        """What there is to imitate, in a sentence."""
        tokens = sum(len(example.token) for example in self.train)
        held_out, most = f", {len(self.held_out):,} held out" if self.held_out else "", self.config.evaluation.tasks
        if len(self.held_out) > most:
            held_out += f" (evaluation.tasks={most} of them are measured)"
        left_out = "".join(f", {count:,} {_LEFT_OUT[why]}" for why, count in self.left_out.items() if count)
        return f"{len(self.train):,} conversations with {tokens:,} trained tokens{held_out}{left_out}"


_LEFT_OUT = {"over_long": "longer than training.tokens_per_batch and left out", "without_tokens": "without any token"}


def resolve_sft(
    config: Config,
    plugins: Plugins,
    say: Callable[[str], None],
    note: Callable[[str], None],
    *,
    weights: Path | None = None,
) -> SftParts:
    """Read what ``config`` names, and start nothing; ``say`` is told what takes a while, ``note`` what is noteworthy.

    ``weights`` is the folder of a checkpoint that takes the place of the config's model. Raises ``ConfigError`` for a
    line that is no conversation, for conversations that the model cannot write, and where nothing is left to imitate.
    """
    config, algorithm = _with_algorithm(_with_sources(config), plugins)
    folder = find_model(plugins, config.model) if weights is None else weights
    config = with_learning_rate(config, folder)
    check_learner(folder, config, note)
    config = planned(config, folder, note, samples=False)  # Before anything is read, since passes bound conversations.
    chat = load_chat(folder, config.model)
    say("reading the conversations")
    left_out: Counter[str] = Counter()
    read = _Reading(config, plugins, chat, left_out)
    assert config.sft.data is not None
    train, held_out = _split(read.examples(config.sft.data, "sft.data"), config)
    if config.sft.held_out_data is not None:
        held_out = read.examples(config.sft.held_out_data, "sft.held_out_data")
    if not train:
        raise ConfigError(
            f"nothing of {config.sft.data} is left to imitate: {dict(left_out)}",
            fix="raise training.tokens_per_batch, or name other conversations",
            key="sft.data",
        )
    is_wanted = config.sft.held_out_data is not None or config.sft.held_out not in (0, SftSection().held_out)
    if is_wanted and not held_out:
        raise ConfigError(
            f"no conversation is left to measure the loss on: of {len(train):,} none is held out, or all of "
            "sft.held_out_data are left out",
            fix="name more conversations, or set sft.held_out=0 to measure nothing",
            key="sft.held_out_data" if config.sft.held_out_data is not None else "sft.held_out",
        )
    order = Order([len(example.token) for example in train], config.sft, config.seed)
    return SftParts(
        config=_with_steps(config, order),
        plugins=plugins,
        algorithm=algorithm,
        model_folder=folder,
        conversing=chat.kept,
        train=train,
        held_out=held_out,
        order=order,
        left_out=left_out,
    )


def _with_sources(config: Config) -> Config:
    """``config`` with a run's folder in the place of its name, and the run's model where none is named."""
    if config.sft.data is None:
        raise ConfigError(
            "nothing says what to imitate",
            fix="name a file of conversations, or a run: agentrl sft chats.jsonl",
            key="sft.data",
        )
    found = {
        name: _source(given, config, f"sft.{name}")
        for name, given in (("data", config.sft.data), ("held_out_data", config.sft.held_out_data))
        if given is not None
    }
    config = _updated(config, "sft", {name: str(path) for name, path in found.items()})
    if not found["data"].is_dir():
        if config.sft.min_reward is not None:
            raise ConfigError(
                f"sft.min_reward={config.sft.min_reward:g} chooses episodes of a run, and {config.sft.data} is a file",
                fix="leave it out, or name a run",
                key="sft.min_reward",
            )
        return config
    if "model.name" in config.written_at or config.model != Config().model:
        return config
    return _updated(config, "model", dict(Run(found["data"]).config.model))


def _source(given: str, config: Config, key: str) -> Path:
    """The file, or the folder of the run, that ``given`` names."""
    path = Path(os.path.expanduser(given))
    if path.is_file():
        return path
    try:
        return open_run(given, runs=config.run.dir).path
    except ConfigError as error:
        raise ConfigError(
            f"{given!r} is neither a file of conversations nor a run",
            fix=near_files(path, path.parent.glob("*.json*"), "file of JSON lines") if path.suffix else error.fix,
            key=key,
        ) from error


def _updated(config: Config, section: str, values: dict[str, object]) -> Config:
    changed = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    changed.remember(config.written_at)
    return changed


def _with_algorithm(config: Config, plugins: Plugins) -> tuple[Config, Algorithm]:
    """``config`` with the algorithm ``sft`` where it names none, and that algorithm.

    Raises ``ConfigError`` for one that compares episodes.
    """
    part, is_set = config.algorithm, any(key.startswith("algorithm") for key in config.written_at)
    if part == Config().algorithm and not is_set:
        part = PartModel(name=_PRESET)
    algorithm = build_algorithm(plugins, part)
    if algorithm.command != "sft":
        raise ConfigError(
            f"algorithm={part.name!r} compares episodes by their rewards, and conversations have none",
            fix=f"leave it out, or set algorithm={_PRESET} with keys of its own",
            key="algorithm",
        )
    if algorithm.columns:
        raise ConfigError(
            f"algorithm={part.name!r} needs what models say of every token ({', '.join(algorithm.columns)}), which "
            "agentrl sft does not ask",
            fix="leave out what needs it, such as penalty.kl",
            key="algorithm",
        )
    if config.training.minibatches > 1:
        raise ConfigError(
            f"training.minibatches={config.training.minibatches} has no effect: a step of agentrl sft is one update",
            fix="leave it out, and set sft.conversations_per_step to the conversations of an update",
            key="training.minibatches",
        )
    changed = config.model_copy(update={"algorithm": part})
    changed.remember(config.written_at)
    return changed, algorithm


def _with_steps(config: Config, order: Order) -> Config:
    """``config`` with as many steps as its epochs take, where it does not say how many."""
    epochs, is_set = config.sft.epochs, "training.steps" in config.written_at
    is_set = is_set or config.training.steps != Config().training.steps
    if epochs is not None and is_set:
        raise ConfigError(
            f"sft.epochs={epochs} and training.steps={config.training.steps} both say how long to train",
            fix="leave one of them out",
            key="sft.epochs",
        )
    if is_set:
        return config
    config = _updated(config, "training", {"steps": order.steps(epochs or 1)})
    return _updated(config, "sft", {"epochs": None})


def _split(examples: Sequence[Example], config: Config) -> tuple[list[Example], list[Example]]:
    """The conversations to train on, and the share that is held out."""
    if config.sft.held_out_data is not None or not config.sft.held_out or len(examples) < 2:
        return list(examples), []
    count = min(max(1, round(config.sft.held_out * len(examples))), len(examples) - 1)
    order = np.random.default_rng([config.seed, _SHARE]).permutation(len(examples))
    chosen = {int(index) for index in order[:count]}
    return (
        [example for index, example in enumerate(examples) if index not in chosen],
        [examples[int(index)] for index in order[:count]],
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads conversations for one model."""

    config: Config
    plugins: Plugins
    chat: Chat
    left_out: Counter[str]

    def examples(self, source: str, key: str) -> list[Example]:
        """What ``source`` holds to imitate. Raises ``ConfigError`` for the first line that is wrong."""
        path = Path(source)
        found = self._episodes(Run(path)) if path.is_dir() else self._dialogues(path)
        longest = self.config.training.pass_tokens
        kept: list[Example] = []
        for example in found:
            if example is None:
                self.left_out["without_tokens"] += 1
            elif example.longest > longest:
                self.left_out["over_long"] += 1
            else:
                kept.append(example)
        if not kept and not self.left_out.total():
            least = self.config.sft.min_reward
            raise ConfigError(
                f"{source} holds nothing to imitate"
                + ("" if least is None else f": no episode of training has a reward of {least:g} or more"),
                fix=f"name other conversations with {key}" + ("" if least is None else ", or lower sft.min_reward"),
                key=key,
            )
        return kept

    def _dialogues(self, path: Path) -> Iterator[Example]:
        for dialogue in read_dialogues(path, self.config.sft.loss):
            yield example_of_dialogue(dialogue, self.chat.renderer)

    def _episodes(self, run: Run) -> Iterator[Example | None]:
        check_vocabulary(run, self.config, self.plugins, self.chat, "sft.data")
        least = self.config.sft.min_reward
        found = run.load_episodes(phase="train", outcome="rewarded")
        for episode in found if least is None else run.load_episodes(phase="train", min_reward=least):
            yield example_of_episode(episode, self.config.sft.loss)


def check_vocabulary(run: Run, config: Config, plugins: Plugins, chat: Chat, key: str) -> None:
    """Raise ``ConfigError``, about ``key``, where the ids of a run's episodes are other tokens in ``chat``."""
    if run.config.model.name == config.model.name:
        return
    newest = run.newest_checkpoint()
    theirs = load_chat(newest.path if newest else find_model(plugins, run.config.model), run.config.model)
    if theirs.tokenizer.get_vocab() != chat.tokenizer.get_vocab():
        raise ConfigError(
            f"the episodes of {run.path} are token ids of model {run.config.model.name!r}, and model "
            f"{config.model.name!r} has another vocabulary",
            fix="train a model of the same family, or fine-tune on conversations that are written as messages",
            key=key,
        )


async def fine_tune(
    parts: SftParts,
    reporter: Reporter,
    interrupts: Interrupts,
    resumed_from: ResumePoint | None = None,
    hosting: Hosting | None = None,
) -> Summary:
    """Imitate the conversations of ``parts`` until the last step, one of ``interrupts`` or an error.

    Returns the summary of the run, as ``agentrl.training.run.train`` does, and raises what that raises.
    ``resumed_from`` says where a run goes on that has ended before, and ``hosting`` are its hosts, where it has any.
    """
    told, config = Reporters(reporter), parts.config
    trackers = Trackers.build(parts.plugins, config.trackers, warn=told.warning, patience=config.run.hook_timeout)
    digest = {
        "train": digest_of(parts.train),
        "held_out": digest_of(parts.held_out),
        "conversations": len(parts.train),
        **parts.left_out,
    }
    folder = RunFolder.create(config) if resumed_from is None else resumed_from.folder
    kept = folder.conversations
    if resumed_from is None:
        write_atomically(kept, json.dumps(digest, indent=2) + "\n")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(EpisodeStore(folder.episodes))  # It has no episodes, and locks the folder.
        lines: list[MetricsLine] = []
        spent = Cost()
        if resumed_from is not None:
            _check_same(kept, digest)
            spent = Run(folder.path).cost
            folder.reopen(config)
            folder.prune([each.path for each in resumed_from.damaged])
            cut_after(folder.metrics, resumed_from.version)
            lines = MetricsReader(folder.metrics).read()
        recorder = stack.enter_context(recording(folder, store, config, parts.plugins, trackers, told))
        recorder.meter.take_up(spent, cost_of(lines))
        told.note(parts.told())
        if resumed_from is not None:
            changed = "; ".join(map(str, resumed_from.changed))
            told.note(f"resumed from step {resumed_from.version}" + (f", with {changed}" if changed else ""))
        return await _SftCourse(parts, recorder, resumed_from, lines, hosting).to_its_end(interrupts)


def _check_same(kept: Path, digest: dict[str, object]) -> None:
    """Raise ``ConfigError`` where a run that is resumed would go on with other conversations."""
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{kept} cannot be read: {error}", fix="restore it from a copy") from error
    if any(before.get(name) != digest[name] for name in ("train", "held_out")):
        raise ConfigError(
            "the conversations are not those that the run began with: a file has changed, or the model renders them "
            "otherwise",
            fix="restore them, or start another run from the newest checkpoint with model=CHECKPOINT",
            key="sft.data",
        )


class _SftCourse(Course):
    def __init__(
        self,
        parts: SftParts,
        recorder: RunRecorder,
        point: ResumePoint | None,
        lines: Sequence[MetricsLine],
        hosting: Hosting | None,
    ) -> None:
        self._point, self._parts, self._lines = point, parts, lines
        saved = None if point is None or point.checkpoint is None else point.checkpoint.path
        seconds = 0.0 if saved is None else read_checkpoint(saved).seconds
        super().__init__(recorder, seconds, hosting, 0 if point is None else point.restarts)
        self._saved = saved

    def going_on(self, summary: Summary) -> str | None:
        return f"resume it with: agentrl sft --resume {self.recorder.folder.path}"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[SftLoop]:
        parts, recorder = self._parts, self.recorder
        config = parts.config
        learner = await self.learner(config, parts.plugins, parts.model_folder, parts.algorithm.loss, self._saved)
        await recorder.start(config, None if self._point is None else self._point.version)
        yield SftLoop(
            config=config,
            learner=learner,
            normalisation=parts.algorithm.normalisation,
            train=parts.train,
            held_out=parts.held_out[: config.evaluation.tasks],
            order=parts.order,
            recorder=recorder,
            conversing=parts.conversing,
            elapsed=self.elapsed,
            lines=self._lines,
            over_long=parts.left_out["over_long"],
        )
