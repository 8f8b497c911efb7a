"""Runs that are killed at any moment and resumed, and what is left of them: shared by tests and `make acceptance`."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from agentrl import open_run
from agentrl.cli import main
from agentrl.rollout.contract import EpisodeKey
from agentrl.runs.folder import is_locked

SMALL = (
    *("training.steps=6", "training.checkpoint_every=2", "training.learning_rate=0.003"),
    *("rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.max_tokens=12", "rollout.concurrency=6"),
    *("evaluation.every=2", "evaluation.tasks=2"),
)
"""Six steps of eight short episodes, with evaluations and checkpoints between them."""


class Process(Protocol):
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float = ...) -> int: ...

    def kill(self) -> None: ...

    def send_signal(self, number: int) -> None: ...


class Starts(Protocol):
    """A ``tests.warm.WarmInterpreter``."""

    def start(
        self,
        *arguments: str,
        cwd: Path,
        before: str = ...,
        hosts: Path | None = ...,
        stdout: IO[Any] | None = ...,
        stderr: IO[Any] | None = ...,
    ) -> Process: ...


@dataclass(frozen=True)
class Trained:
    """What has to be the same however often a run was killed."""

    keys: Counter[str]
    """The keys of all stored episodes."""
    metrics: list[tuple[int, dict[str, float | None]]]
    """Every line of metrics, but for times, and for proofs, whose noise is measured anew after a resume."""
    weights: dict[int, bytes]
    """The weights of the last checkpoint, by its step."""
    records: dict[str, str]
    """What steps made of each training episode and of its tokens, in full: a NaN is equal to nothing."""


class Runs:
    """Starts runs of ``agentrl train`` in ``folder`` and kills them."""

    def __init__(self, interpreter: Starts, folder: Path, *, hosts: Path | None = None) -> None:
        """``hosts`` is as that of ``tests.warm.WarmInterpreter.start``."""
        self._interpreter = interpreter
        self.folder = folder
        self.hosts = hosts
        self.told = ""
        """What the last process has printed."""

    def start(self, *arguments: str, before: str = "") -> Process:
        if self.hosts is not None:
            self.hosts.write_text("")
        with (self.folder / "told").open("w") as log:
            return self._interpreter.start(
                "train", *arguments, cwd=self.folder, before=before, hosts=self.hosts, stdout=log, stderr=log
            )

    def train(self, *arguments: str, before: str = "") -> int:
        """Train to the end; returns the exit code."""
        code = self.start(*arguments, before=before).wait(300)
        self.told = (self.folder / "told").read_text()
        return code

    def here(self, *arguments: str) -> int:
        """``agentrl train`` in this process, which has loaded all that a new one would load; returns the exit code.

        For the part of a run in which nothing is killed: what it does is no different, and costs half as much.
        """
        code = 0
        with contextlib.ExitStack() as within:
            told = within.enter_context((self.folder / "told").open("w"))
            within.enter_context(contextlib.chdir(self.folder))
            within.enter_context(contextlib.redirect_stdout(told))
            within.enter_context(contextlib.redirect_stderr(told))
            try:
                main(["train", *arguments])
            except SystemExit as left:
                code = int(left.code or 0)
        self.told = (self.folder / "told").read_text()
        return code

    def new(self, name: str, *settings: str, before: str = "") -> Process:
        """Start a run, and return when its folder is made."""
        process = self.start("math", *SMALL, f"run.name={name}", *settings, before=before)
        while process.poll() is None and not (self.folder / "runs" / name / "config.yaml").exists():
            time.sleep(0.01)
        return process

    def whole(self, name: str, *settings: str) -> float:
        """A run that nothing stops; returns the seconds that it took from the moment at which its folder was there."""
        process = self.new(name, *settings)
        began = time.monotonic()
        assert process.wait(300) == 0, (self.folder / "told").read_text()
        return time.monotonic() - began

    def kill(self, process: Process, after: float) -> bool:
        """Kill a run after so many seconds; returns whether it was still there."""
        ends = time.monotonic() + after
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(0.005)
        process.kill()
        return process.wait(60) == -9

    def killed_and_resumed(self, name: str, seed: int, seconds: float, *settings: str) -> int:
        """A run of about ``seconds`` that is killed at random moments, one time and perhaps another; returns how often.

        It is resumed until it is complete.
        """
        moments = random.Random(seed)
        killed = int(self.kill(self.new(name, *settings), moments.uniform(0, seconds)))
        if killed and moments.random() < 0.5:
            killed += int(self.kill(self.start("--resume", name), moments.uniform(0, seconds)))
        if open_run(self.folder / "runs" / name).state != "completed":
            assert self.train("--resume", name) == 0, self.told
        return killed

    def trained(self, name: str) -> Trained:
        run = open_run(self.folder / "runs" / name)
        assert run.state == "completed", self.told
        assert not is_locked(run.path)
        newest = run.newest_checkpoint()
        assert newest is not None
        return Trained(
            keys=Counter(str(row.key) for row in run.episodes()),
            metrics=sorted(
                ((line.step, told(line.metrics)) for line in run.metrics()),
                key=lambda line: (line[0], "evaluation/reward" in line[1]),
            ),
            weights={newest.step: (newest.path / "model.safetensors").read_bytes()},
            records={
                str(row.key): repr((row.fate, row.advantage, run.trained(row.key)))
                for row in run.episodes(phase="train")
            },
        )


def told(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Metrics without those that tell of times or of a process."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("seconds/", "proof/", "weights/", "cost/")) and name != "episode/seconds"
    }


def assert_the_same(one: Trained, other: Trained) -> None:
    """One after the other, since each says more of what went wrong than the next."""
    assert max(one.keys.values()) == 1, [key for key, count in one.keys.items() if count > 1]
    assert one.keys == other.keys
    assert [step for step, _ in one.metrics] == [step for step, _ in other.metrics]
    for (step, these), (_, those) in zip(one.metrics, other.metrics, strict=True):
        differ = {name for name in these.keys() | those.keys() if these.get(name) != those.get(name)}
        assert not differ, (step, {name: (these.get(name), those.get(name)) for name in differ})
    assert one.weights == other.weights
    assert "TrainedTokens" in min(one.records.values())
    assert one.records == other.records


def assert_bounded(folder: Path, name: str, staleness: int) -> None:
    """No trained token is older than the bound, every group is generated once, and the ledger knows every episode."""
    run = open_run(folder / "runs" / name)
    keys = Counter[EpisodeKey](row.key for row in run.episodes(phase="train"))
    assert max(keys.values()) == 1
    for episode in run.load_episodes(phase="train"):
        if episode.trained_step is not None:
            spans = (span.sampled for span in episode.tree.spans if span.sampled is not None)
            assert all(episode.trained_step - 1 - min(sampled.versions) <= staleness for sampled in spans)
    assert run.summary is not None
    assert run.summary.ledger["received"] == len(keys)
