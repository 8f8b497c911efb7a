"""Times of the episode store at 100,000 episodes: questions of a reader, its memory, and commits beside a reader.

::

    python -m tests.benchmarks.store [--run FOLDER] [--episodes N] [--steps N]

Without ``--run`` a run is made first, which takes some minutes. Each question is asked three times by one process; the
first time and the best stand beside the CPU of the best. Commits are those of a step of 64 episodes of 300 tokens into
a store of their own: its episodes, the begin of the step, and what the step made of every token. They alternate between
blocks alone and blocks beside a process that asks, 4 times a second, what an open page asks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, get_args

from tests.benchmarks.made_run import GROUPS, Maker, make_run

from agentrl import open_run
from agentrl.runs.contract import CountKey, Membership, SortKey
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore

_FIRST_PAGE = """
import sys
from agentrl import open_run
rows = open_run(sys.argv[1]).episodes(descending=True, limit=50)
assert len(rows) == 50
"""
_SHOWN = 50
_BLOCKS, _POLL_S = 4, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.store", description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="the folder of a run that `made_run` has made")
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument(
        "--steps", type=int, default=40, help="steps whose commits are timed, alone and beside a reader"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run or make_run(Path(scratch) / "large", given.episodes).path
        _questions(folder)
        _commits(Path(scratch), given.steps)


def _questions(folder: Path) -> None:
    run = open_run(folder)
    count, size = run.count(), (folder / "episodes.sqlite").stat().st_size
    print(f"{count:,} episodes, {size / 1e6:,.0f} MB; milliseconds")
    print(f"  {'':44} {'first':>8} {'best':>8} {'CPU':>8}")
    alone = subprocess.run
    _tell("first page from a fresh interpreter", lambda: alone([sys.executable, "-c", _FIRST_PAGE, folder], check=True))
    for name, ask in _asked(run):
        _tell(name, ask)
    print(f"  peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


def _asked(run: Run) -> list[tuple[str, Callable[[], Any]]]:
    middle = run.steps()[len(run.steps()) // 2].step
    row = run.episodes(step=middle, limit=1)[0]
    filters: list[dict[str, Any]] = [
        {"phase": "eval"},
        {"group": row.key.group},
        {"task": row.key.task},
        {"step": middle},
        {"version": row.version},
        {"outcome": "failed"},
        {"side": "agent"},
        {"fate": "trained"},
        {"fate": "stale"},
        {"tool": "search"},
        {"min_reward": 0.5, "max_reward": 1.05},
        {"text": "task"},
        {"text": f'"task {row.key.task}"'},
        {"text": "nowhere"},
        {"tool": "search", "text": "task", "fate": "trained", "min_reward": 0.5},
    ]
    asked: list[tuple[str, Callable[[], Any]]] = [
        ("first page", lambda: run.episodes(descending=True, limit=_SHOWN)),
        ("last page", lambda: run.episodes(descending=True, limit=_SHOWN, offset=run.count() - _SHOWN)),
        ("metrics", run.metrics),
        ("one episode", lambda: run.episode(row.key)),
        ("its trained tokens", lambda: run.trained(row.key)),
        ("groups of a step", lambda: run.groups(step=middle)),
        ("groups, a page", lambda: run.groups(limit=_SHOWN)),
    ]
    for each in filters:
        named = ", ".join(f"{name}={value}" for name, value in each.items())
        asked.append((named, lambda each=each: run.episodes(limit=_SHOWN, **each)))  # type: ignore[misc]
        asked.append(("  by reward", lambda each=each: run.episodes(limit=_SHOWN, sort="reward", **each)))  # type: ignore[misc]
        asked.append(("  count", lambda each=each: run.count(**each)))  # type: ignore[misc]
    for sort in get_args(SortKey):
        asked.append((f"by {sort}", lambda sort=sort: run.episodes(sort=sort, descending=True, limit=_SHOWN)))  # type: ignore[misc]
    for by in get_args(CountKey):
        asked.append((f"counts by {by}", lambda by=by: run.counts(by)))  # type: ignore[misc]
    return asked


def _tell(name: str, ask: Callable[[], Any]) -> None:
    walls, cpus = [], []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    print(f"  {name:44} {walls[0] * 1e3:8.1f} {min(walls) * 1e3:8.1f} {min(cpus) * 1e3:8.1f}", flush=True)


def _commits(scratch: Path, steps: int) -> None:
    run = make_run(scratch / "growing", 1000)
    maker, taken, last = (
        Maker(1),
        {False: list[list[float]](), True: list[list[float]]()},
        len(open_run(run.path).steps()),
    )
    context = multiprocessing.get_context("spawn")
    with EpisodeStore(run.episodes) as store:
        for block in range(2 * _BLOCKS):
            beside, stop, ready = block % 2 == 1, context.Event(), context.Event()
            reader = context.Process(target=_poll, args=(run.path, ready, stop))
            if beside:
                reader.start()
                ready.wait(60)
            for _ in range(max(1, steps // _BLOCKS)):
                last += 1
                taken[beside].append(_step(store, maker, last))
                time.sleep(0.1)
            stop.set()
            if beside:
                reader.join()
    print(f"a step of 64 episodes, {len(taken[True])} each; median milliseconds (quarter to three quarters)")
    print(f"  {'':16} {'episodes':>22} {'begin':>22} {'tokens':>22}")
    for beside, rounds in taken.items():
        columns = (_spread([each[number] for each in rounds]) for number in range(3))
        print(f"  {'beside a reader' if beside else 'alone':16} " + " ".join(f"{each:>22}" for each in columns))


def _step(store: EpisodeStore, maker: Maker, step: int) -> list[float]:
    groups = [maker.group("train", step * GROUPS + number, step - 1, 0.5) for number in range(GROUPS)]
    members = [episode for group in groups for episode in group]
    trained = [each for group in groups for each in maker.trained(step, group)]
    clock = [time.perf_counter()]
    for write in (
        lambda: store.submit(members),
        lambda: store.begin_step(Membership(step, tuple(group[0].key.group for group in groups))),
        lambda: store.record_training(step, trained),
    ):
        write().result()
        clock.append(time.perf_counter())
    return [(later - sooner) * 1e3 for sooner, later in pairwise(clock)]


def _spread(values: Sequence[float]) -> str:
    quarter, median, three = statistics.quantiles(values, n=4)
    return f"{median:.1f} ({quarter:.1f} to {three:.1f})"


def _poll(folder: Path, ready: Event, stop: Event) -> None:
    """What a page asks while it is open."""
    run = open_run(folder)
    while not stop.is_set():
        run.metrics()
        run.counts("outcome")
        run.episodes(descending=True, limit=_SHOWN)
        run.episodes(sort="surprise", descending=True, limit=_SHOWN)
        ready.set()
        stop.wait(_POLL_S)


if __name__ == "__main__":
    main()
