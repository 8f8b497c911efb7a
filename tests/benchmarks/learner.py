"""Tokens a second of an optimiser step, the forest beside padded rows.

    python -m tests.benchmarks.learner [--model FOLDER] [--threads 2] [--repeat 7]

``prompt 512`` is 8 groups of 8 with a shared prompt of 512 tokens and completions of 32 to 128 tokens, at the
default ``tokens_per_batch``. ``short`` is what the bundled agents make of a step: prompts of 40 tokens and
completions of 8 to 16. Both columns are the whole of ``Learner.step``, GRPO with one update, and count the same
tokens: those of all rows, prompts included, without padding. The padded rows are an honest best of their kind:
sorted by length, causal attention without a mask, logits only where a token is predicted. The sides take turns.

The model is a random Qwen3 as large as the bundled one (2 layers of 128, a vocabulary of 1024), in float32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tests.training.algorithms import grpo
from tests.training.episodes import groups_of_one_turn
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from agentrl.config.models import TrainingSection
from agentrl.inference.progress_bars import no_progress_bars
from agentrl.rollout.episode import Group
from agentrl.training.attention import NAME
from agentrl.training.learner import Learner

STAGES = ("pack", "gradient", "update")


@dataclass
class Side:
    """One way to lay a batch out, and its measured steps."""

    learner: Learner
    steps: list[dict[str, float]] = field(default_factory=list)

    def run(self, groups: list[Group]) -> None:
        self.steps.append(self.learner.step(groups))

    def milliseconds(self, stage: str) -> float:
        return 1000 * statistics.median(step[f"seconds/learner/{stage}"] for step in self.steps)

    @property
    def total(self) -> float:
        return 1000 * statistics.median(
            sum(step[f"seconds/learner/{stage}"] for stage in STAGES) for step in self.steps
        )


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
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
    )
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        Qwen3ForCausalLM(config).save_pretrained(folder)
        yield Path(folder)


def padded(learner: Learner) -> Learner:
    """``learner`` on rows, whatever its model could take."""
    learner.rows_because = "measured"
    model = learner.model
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")
    return learner


def measure(folder: Path, repeat: int) -> Table:
    table = Table(
        "load", "side", "tokens computed", *(f"{stage} ms" for stage in STAGES), "step ms", "tokens/s", "times"
    )
    for name, groups in loads(AutoConfig.from_pretrained(folder).vocab_size).items():
        training, algorithm = TrainingSection(), grpo()
        rows = Side(padded(Learner(folder, training, algorithm, seed=0)))
        forest = Side(Learner(folder, training, algorithm, seed=0))
        for _ in range(repeat):
            rows.run(groups)
            forest.run(groups)
        for side, computed in ((rows, "tokens/rows"), (forest, "tokens/forest")):
            speed = 1000 * row_tokens(groups) / side.total
            times = rows.total / side.total
            stages = [f"{side.milliseconds(stage):.1f}" for stage in STAGES]
            label = computed.removeprefix("tokens/")
            table.add_row(
                name,
                label,
                f"{side.steps[0][computed]:,.0f}",
                *stages,
                f"{side.total:.1f}",
                f"{speed:,.0f}",
                f"{times:.2f}",
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learner", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face model folder; by default a random one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with random_model() as random_folder:
        table = measure(options.model or random_folder, options.repeat)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
