"""Tokens a second of an optimiser step, the forest beside padded rows.

    python -m tests.benchmarks.learner [--model NAME] [--load NAME] [--threads 1] [--repeat 7]

``prompt 512`` is 8 groups of 8 with a shared prompt of 512 tokens and completions of 32 to 128 tokens, at the
default ``tokens_per_batch``. ``short`` is about what the bundled agents make of a step: prompts of 40 tokens and
completions of 8 to 16. Both sides run ``build_batch`` and the whole of ``Learner.step``, GRPO with one update, and
count the same tokens: those of all rows, prompts included, without padding. The padded rows are an honest best of
their kind: sorted by length, causal attention without a mask, logits only where a token is predicted.

The sides take turns and the fastest step of each counts. On one thread, the default, it is the fastest by CPU time,
which other work on the machine disturbs least, and speeds are by CPU; on more they are by the time that passes. Both
are shown; the stages are the latter.

The model is a random Qwen3 in float32: 4 layers of 128, a vocabulary of 1024.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import groups_of_one_turn
from tests.benchmarks.models import folder_of
from tests.benchmarks.taken import Taken
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.inference.model_folder import no_progress_bars
from agentrl.learner.attention import NAME
from agentrl.learner.learner import Learner
from agentrl.rollout.contract import Group

GRPO = grpo()
STAGES = ("pack", "gradient", "update")


@dataclass
class Side:
    """One way to lay a batch out, and its measured steps."""

    learner: Learner
    clock: Callable[[Taken], float]
    """Which of the two times counts."""
    steps: list[tuple[Taken, dict[str, float]]] = field(default_factory=list)

    def run(self, groups: list[Group]) -> None:
        start = Taken.now()
        batch, _ = build_batch(groups, GRPO)
        metrics = self.learner.step(batch).metrics
        self.steps.append((Taken.now().since(start), metrics))

    @property
    def best(self) -> tuple[Taken, dict[str, float]]:
        """Seconds and metrics of the fastest step."""
        return min(self.steps, key=lambda step: self.clock(step[0]))

    @property
    def seconds(self) -> float:
        """Of the fastest step."""
        return self.clock(self.best[0])


def loads(vocabulary: int) -> dict[str, list[Group]]:
    source = random.Random(0)
    return {
        "prompt 512": groups_of_one_turn(source, vocabulary, groups=8, size=8, prompt=512, shortest=32, longest=128),
        "short": groups_of_one_turn(source, vocabulary, groups=8, size=8, prompt=40, shortest=8, longest=16),
    }


def row_tokens(groups: list[Group]) -> int:
    """Tokens of all rows, prompts included; the last of each is predicted but never read."""
    calls = [call for group in groups for episode in group.episodes for call in episode.calls]
    return sum(call.prompt_tokens + call.completion_tokens - 1 for call in calls)


@contextmanager
def random_model() -> Iterator[Path]:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        Qwen3ForCausalLM(config).save_pretrained(folder)
        yield Path(folder)


def loaded(folder: Path) -> Learner:
    return Learner(folder, TrainingSection(), GRPO.loss, seed=0)


def padded(learner: Learner) -> Learner:
    """``learner`` on rows, whatever its model could take."""
    model = learner.model
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")
    return learner


def measure(folder: Path, load: str | None, threads: int, repeat: int) -> Table:
    stages = [f"{stage} ms" for stage in STAGES]
    table = Table("load", "side", "tokens computed", *stages, "step ms", "CPU ms", "tokens/s", "times")
    clock = attrgetter("cpu" if threads == 1 else "wall")
    for name, groups in loads(AutoConfig.from_pretrained(folder).vocab_size).items():
        if load not in (None, name):
            continue
        sides = {
            "rows": Side(padded(loaded(folder)), clock),
            "forest": Side(loaded(folder), clock),
        }
        for _ in range(repeat):
            for side in sides.values():
                side.run(groups)
        baseline = sides["rows"].seconds
        for label, side in sides.items():
            table.add_row(name, label, *cells(side, label, row_tokens(groups)), f"{baseline / side.seconds:.2f}")
    return table


def cells(side: Side, label: str, tokens: int) -> Iterator[str]:
    taken, metrics = side.best
    yield f"{metrics[f'tokens/{label}']:,.0f}"
    for stage in STAGES:
        yield f"{1000 * metrics[f'seconds/learner/{stage}']:.1f}"
    yield f"{1000 * taken.wall:.1f}"
    yield f"{1000 * taken.cpu:.1f}"
    yield f"{tokens / side.seconds:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learner", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model's name or folder; by default random weights")
    parser.add_argument("--load", choices=loads(2), help="one of the loads; by default both")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with random_model() as random_folder:
        folder = folder_of(options.model) if options.model else random_folder
        table = measure(folder, options.load, options.threads, options.repeat)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
