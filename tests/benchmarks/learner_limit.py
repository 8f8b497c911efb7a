"""Tokens a second and peak memory of a learner's step, beside a plain forward and backward and the products' limit.

    python -m tests.benchmarks.learner_limit [--model NAME] [--precision float32 bfloat16] [--training whole lora]
        [--prompt 30 450] [--threads 2] [--repeat 3]

A step is 8 groups of 8 completions of 32 tokens. ``--prompt`` says how many tokens the prompts have in common, beside
which each group has 30 of its own. ``plain`` is what a script would write with transformers: padded rows, eight at a
time, the log-softmax of the completions' logits, and its gradient, without an optimiser. ``products`` are the matrix
products of the step alone, of the model's own shapes, forward and for both gradients, each measured at once with the
others; no learner can be faster. Tokens are those of all rows, prompts included, for all three.

Each side runs in a process of its own, which tells its peak; they take turns, and the fastest step of each counts, by
the time that passes and by CPU. On a busy machine the ratio of CPU seconds says more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder
from tests.benchmarks.learner import row_tokens
from tests.benchmarks.models import folder_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from agentrl.algorithms.batch import build_batch
from agentrl.config.training import TrainingSection
from agentrl.learner.learner import Learner
from agentrl.learner.packing import pack
from agentrl.rollout.contract import Group

OWN, COMPLETION, GROUPS, SIZE, MICRO = 30, 32, 8, 8, 8


@dataclass(frozen=True)
class Work:
    """What one side does."""

    side: str
    folder: Path
    precision: str
    common: int
    lora: bool
    threads: int


@dataclass(frozen=True)
class Turn:
    wall: float
    cpu: float
    peak: int
    """MiB of the process so far."""


def groups_of(vocabulary: int, common: int) -> list[Group]:
    """Prompts that have ``common`` tokens in common and ``OWN`` more each."""
    source = random.Random(0)
    shared = [source.randrange(vocabulary) for _ in range(common)]
    groups = []
    for task in range(GROUPS):
        prompt = shared + [source.randrange(vocabulary) for _ in range(OWN)]
        episodes = []
        for sample in range(SIZE):
            recorder = Recorder(source, vocabulary)
            recorder.call(prompt, COMPLETION)
            episodes.append(recorder.episode(float(sample % 2), sample, task))
        groups.append(Group(task, tuple(episodes)))
    return groups


def step_of(work: Work) -> Callable[[], object]:
    """What is measured, ready to run."""
    torch.set_num_threads(work.threads)
    vocabulary = AutoConfig.from_pretrained(work.folder).vocab_size
    batch, _ = build_batch(groups_of(vocabulary, work.common), grpo())
    if work.side == "agentrl":
        settings: dict[str, Any] = {"precision": work.precision, "learning_rate": 1e-6}
        if work.lora:
            settings["lora"] = {"rank": 16}
        learner = Learner(work.folder, TrainingSection(**settings), grpo().loss, seed=0)
        return lambda: learner.step(batch)
    dtype = getattr(torch, work.precision)
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=dtype)
    if work.side == "plain":
        if work.lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
        rows = torch.stack([torch.from_numpy(path) for path in batch.paths])
        return lambda: _plain(model, rows)
    (work_done,) = pack(batch.paths, batch.targets, 1 << 20, forest=True)
    return _products(model, work_done.ids_RT.size, len(batch.targets.token), work.lora)


def _plain(model: nn.Module, rows: torch.Tensor) -> None:
    for some in rows.split(MICRO):
        logits = model(input_ids=some).logits[:, -COMPLETION - 1 : -1].float()
        targets = some[:, -COMPLETION:, None]
        logits.log_softmax(-1).gather(2, targets).sum().backward()
    model.zero_grad()


def _products(model: nn.Module, tokens: int, targets: int, frozen: bool) -> Callable[[], object]:
    """Of every linear module, one at a time; of the head, for the targets alone."""
    head = model.get_output_embeddings()
    shapes = [
        (targets if module is head else tokens, module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    outputs = {
        (rows, weight.shape): [torch.randn(rows, size, dtype=weight.dtype) for size in weight.shape]
        for rows, weight in shapes
    }

    @torch.no_grad()
    def multiply() -> None:
        for rows, weight in shapes:
            gradient, features = outputs[rows, weight.shape]
            torch.mm(features, weight.t(), out=gradient)
            torch.mm(gradient, weight, out=features)
            if not frozen:
                gradient.t() @ features

    return multiply


def enter(work: Work, parent: Connection) -> None:
    """Serve turns until the parent closes."""
    step = step_of(work)
    try:
        while True:
            parent.recv()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            parent.send(Turn(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))
    except EOFError:
        pass


def turns(works: list[Work], repeat: int) -> Iterator[list[Turn]]:
    """Of each side, those after the first."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for work in works:
        ours, theirs = context.Pipe()
        context.Process(target=enter, args=(work, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    found: list[list[Turn]] = [[] for _ in works]
    for number in range(1 + repeat):
        for pipe, taken in zip(pipes, found, strict=True):
            pipe.send(None)
            turn = pipe.recv()
            if number:
                taken.append(turn)
    for pipe in pipes:
        pipe.close()
    yield from found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a model's name or folder; by default the bundled one")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--training", nargs="+", default=["whole"], choices=["whole", "lora"])
    parser.add_argument("--prompt", nargs="+", type=int, default=[0], help="tokens that all prompts have in common")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    folder = folder_of(given.model)
    tokens = {
        common: row_tokens(groups_of(AutoConfig.from_pretrained(folder).vocab_size, common)) for common in given.prompt
    }
    table = Table(title=f"a learner's step, {given.model}, {given.threads} threads")
    for column in ("precision", "trained", "common", "side", "wall s", "CPU s", "tokens/s", "of the limit", "peak MiB"):
        table.add_column(
            column, justify="right" if column in ("wall s", "CPU s", "tokens/s", "of the limit") else "left"
        )
    for precision in given.precision:
        for training in given.training:
            for common in given.prompt:
                work = Work("agentrl", folder, precision, common, training == "lora", given.threads)
                works = [work, replace(work, side="plain"), replace(work, side="products")]
                found = list(turns(works, given.repeat))
                limit = min(turn.cpu for turn in found[-1])
                for each, taken in zip(works, found, strict=True):
                    wall, cpu = min(turn.wall for turn in taken), min(turn.cpu for turn in taken)
                    table.add_row(
                        precision,
                        training,
                        str(common),
                        each.side,
                        f"{wall:.2f}",
                        f"{cpu:.2f}",
                        f"{tokens[common] / wall:,.0f}",
                        f"{limit / cpu:.2f}",
                        f"{taken[-1].peak:,}",
                    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
