"""Seconds of one training step beside TRL's ``GRPOTrainer``, and where agentrl's go.

    python -m tests.benchmarks.train_step [--model NAME] [--max-tokens 8] [--blocks 6] [--steps 10]
        [--sides agentrl TRL] [--common 0] [--micro-batch 64] [--set KEY=VALUE ...]

Both train the same model on the same prompts in the same order: 8 groups of 8, the same limit of tokens and the same
stop token, temperature 1, one optimiser step a batch, no KL term. Rewards are random numbers on both sides: where all
of a step's are equal there is no gradient, which agentrl then does not compute and TRL does. The learning rate is TRL's
default, 1e-6: both go on sampling from the start model, so their completions have the same lengths; ``tokens`` is the
mean. agentrl runs by turns, as TRL does, and with ``rollout.max_staleness=1``, where the rollout goes on beside the
learner. The sides run in turn, a block of steps each, in processes of their own. TRL runs on torch's own number of CPU
threads and on one: the first is faster on a machine with cores to spare, the second on a busy one. Without trl,
agentrl's figures stand alone.

``--common`` puts so many words before every prompt, the same for all. ``--set`` gives agentrl's sides further keys of
its config, such as ``training.precision=bfloat16``, while TRL stays in float32. ``peak`` is the most memory that a
side's process has held. All sides are in memory at once: of a model of which TRL needs a great part of it, take fewer
sides, as ``--sides agentrl TRL``. A side that fails says why, and one that is killed by what.

``clients`` is all that an agent's ``run`` costs, the openai SDK above all, less what its HTTP client's transport
costs, which is ``gateway``: both are CPU of the event loop's thread, read whenever their coroutines are resumed or
suspended. ``rollout`` is the rest of that thread, ``engine`` and ``store`` the CPU of threads of their own, ``learner``
that of all others.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import statistics
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from tests.benchmarks.models import folder_of
from tests.benchmarks.sides.pace import Block, Failure, Workload

OURS, ASYNCHRONOUS, THEIRS, ONE_THREAD = "agentrl", "agentrl, max_staleness=1", "TRL", "TRL, 1 thread"
SPLIT = ("clients", "gateway", "rollout", "engine", "store", "learner")
STAGES = ("rollout", "learner", "weights")


@dataclass
class Side:
    """A side's process, seen from here."""

    name: str
    pipe: Connection
    process: SpawnProcess
    blocks: list[Block] = field(default_factory=list)

    def run_block(self) -> Block:
        """Raises ``SystemExit``, which says why, where the side does not come to its end."""
        try:
            self.pipe.send(None)
            block: Block | Failure = self.pipe.recv()
        except (EOFError, OSError):
            self._died()
        if isinstance(block, Failure):
            raise SystemExit(f"the side {self.name!r} failed:\n{block.traceback}")
        return block

    def _died(self) -> NoReturn:
        self.process.join(timeout=30)
        code = self.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        fix = (
            ", as where memory runs out: take fewer sides with --sides, or a smaller --micro-batch"
            if code == -9
            else ""
        )
        raise SystemExit(f"the side {self.name!r} {how}{fix}")

    @property
    def peak(self) -> float:
        """MiB of memory at most."""
        return max(block.peak for block in self.blocks)

    @property
    def steps(self) -> list[float]:
        """Milliseconds of every step, without the first of several of a block: its episodes may have run before it."""
        return [1000 * seconds for block in self.blocks for seconds in block.wall[1:] or block.wall]

    @property
    def cpu(self) -> float:
        """Milliseconds of CPU a step, the median of the blocks'."""
        return 1000 * statistics.median(block.cpu for block in self.blocks)

    @property
    def tokens(self) -> float:
        return statistics.fmean(block.tokens for block in self.blocks)

    def part(self, name: str) -> float:
        """Milliseconds a step of one part, the median of the blocks'."""
        return 1000 * statistics.median(block.parts[name] for block in self.blocks)


@contextmanager
def started(workloads: Mapping[str, Workload]) -> Iterator[list[Side]]:
    """A process for every side, which waits for its first block."""
    context = multiprocessing.get_context("spawn")
    sides, processes = [], []
    for name, workload in workloads.items():
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=enter, args=(workload, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a side that dies is an end of file here, not a wait for ever
        sides.append(Side(name, ours, processes[-1]))
    try:
        yield sides
    finally:
        for side, process in zip(sides, processes, strict=True):
            side.pipe.close()
            process.join(timeout=30)


def enter(workload: Workload, parent: Connection) -> None:
    try:
        importlib.import_module(f"tests.benchmarks.sides.{workload.side}").run(workload, parent)
    except EOFError:  # the other end has gone
        raise
    except BaseException:
        parent.send(Failure(traceback.format_exc()))


def measure(workloads: Mapping[str, Workload], blocks: int) -> list[Side]:
    """All sides, each having run so many blocks beside one that warmed it up."""
    with started(workloads) as sides:
        for number in range(1 + blocks):
            # Each comes before the others as often as after them.
            for side in sides if number % 2 else reversed(sides):
                block = side.run_block()
                if number:
                    side.blocks.append(block)
        return sides


def step_table(sides: Sequence[Side], workload: Workload) -> Table:
    table = Table(
        title=f"a training step of {workload.groups} groups of {workload.group_size}, "
        f"at most {workload.max_tokens} tokens; of {len(sides[0].steps)} steps"
    )
    for heading in ("", "median ms", "agentrl / it", "max_staleness=1 / it", "mean ms", "CPU ms", "tokens", "peak MiB"):
        table.add_column(heading, justify="right" if heading else "left")
    medians = {side.name: statistics.median(side.steps) for side in sides}
    for side in sides:
        median, mean = statistics.median(side.steps), statistics.fmean(side.steps)
        table.add_row(
            side.name,
            f"{median:.0f}",
            *(f"{medians[name] / median:.2f}" if name in medians else "" for name in (OURS, ASYNCHRONOUS)),
            f"{mean:.0f}",
            f"{side.cpu:.0f}",
            f"{side.tokens:.2f}",
            f"{side.peak:,.0f}",
        )
    return table


def split_table(ours: Side) -> Table:
    table = Table(title="agentrl's step, milliseconds")
    table.add_column()
    for name in SPLIT:
        table.add_column(name, justify="right")
    table.add_row("CPU", *(f"{ours.part(name):.1f}" for name in SPLIT))
    wall = {name: f"{ours.part(f'wall {name}'):.1f}" for name in STAGES}
    table.add_row("wall", *(wall.get(name, "") for name in SPLIT))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="a model's name or folder; by default the bundled one")
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6, help="blocks that count; one more warms up")
    parser.add_argument("--steps", type=int, default=10, help="steps a block; the first of several does not count")
    parser.add_argument("--sides", nargs="+", choices=[OURS, ASYNCHRONOUS, THEIRS, ONE_THREAD], help="by default all")
    parser.add_argument("--common", type=int, default=0, help="words before every prompt, the same for all")
    parser.add_argument("--micro-batch", type=int, default=64, help="rows that TRL computes at once; divides 64")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of agentrl's config")
    given = parser.parse_args()
    workload = Workload(
        side="agentrl_side",
        model=folder_of(given.model),
        max_tokens=given.max_tokens,
        blocks=given.blocks,
        block_steps=given.steps,
        micro_batch=given.micro_batch,
        common=given.common,
        keys=tuple(given.set),
    )
    workloads = {OURS: workload, ASYNCHRONOUS: replace(workload, max_staleness=1)}
    if importlib.util.find_spec("trl") is not None:
        trl = replace(workload, side="trl_side")
        workloads |= {THEIRS: trl, ONE_THREAD: replace(trl, threads=1)}
    elif given.sides is None or {THEIRS, ONE_THREAD} & set(given.sides):
        print("trl is not installed here: pip install 'agentrl-core[dev]'")
    workloads = {name: each for name, each in workloads.items() if given.sides is None or name in given.sides}
    sides = measure(workloads, given.blocks)
    console = Console()
    console.print(step_table(sides, workload))
    if sides[0].name in (OURS, ASYNCHRONOUS):
        console.print(split_table(sides[0]))


if __name__ == "__main__":
    main()
