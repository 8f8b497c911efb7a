"""The page over a run of many episodes: seconds to its first page, of a filter, memory, and what it costs the writer.

python -m tests.benchmarks.view --episodes 100000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import psutil
from tests.benchmarks.made_run import Maker, make_run

from agentrl.runs.store import EpisodeStore

_TURN = 10
"""Commits after which the other turn begins."""
_STEP_S = 0.3
"""Seconds between two commits: a store is written to all the time only in a run whose episodes take none."""

FILTERS: tuple[dict[str, str | int | float], ...] = (
    {},
    {"phase": "eval"},
    {"outcome": "failed"},
    {"side": "agent"},
    {"step": 700},
    {"task": 1919},
    {"tool": "calculate"},
    {"fate": "over_long"},
    {"min_reward": 0.5, "max_reward": 0.9},
    {"text": "bacodi"},
    {"text": "b*"},
    {"sort": "reward", "descending": 1},
    {"sort": "reward"},
    {"sort": "surprise", "descending": 1},
    {"outcome": "rewarded", "tool": "search", "sort": "advantage", "descending": 1},
    {"offset": 50_000},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--run", type=Path, help="the folder of a made run, which grows; it is made where it is not")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="requests of each filter")
    parser.add_argument("--commits", type=int, default=40, help="commits of 64 episodes, half of them beside the page")
    parser.add_argument("--tabs", type=int, default=4, help="pages that are open, each of which asks every 2 seconds")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.run or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "large"
        if not (folder / "config.yaml").exists():
            make_run(folder, options.episodes)
        show_starts(folder, options.starts)
        url, server = stack.enter_context(served(folder))
        show_filters(f"{url}/runs/{folder.name}", server, options.rounds)
        show_memory(server, "after that")
        show_commits(folder, url, options.commits, options.tabs)
        show_memory(server, "after that")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``agentrl view`` over ``folder``: the address of its server, and the process."""
    command = [sys.executable, "-m", "agentrl", "view", str(folder), "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        url = httpx.URL(json.loads(server.stdout.readline())["url"])
        yield f"{url.scheme}://{url.host}:{url.port}", server
    finally:
        server.terminate()
        server.wait()


def show_starts(folder: Path, starts: int) -> None:
    """Seconds from the command to the last byte of the run's page, or of its list of episodes."""
    pages = ("", "/episodes")
    taken: dict[str, list[tuple[float, float]]] = {page: [] for page in pages}
    for number in range(len(pages) * starts):
        page = pages[number % len(pages)]
        began = time.perf_counter()
        with served(folder) as (url, server):
            httpx.get(f"{url}/runs/{folder.name}{page}", timeout=60).raise_for_status()
            taken[page].append((time.perf_counter() - began, cpu_of(server)))
    print(f"seconds from the command to a page, of {starts}:{'median':>25}{'longest':>10}{'CPU':>10}")
    for page, found in taken.items():
        print(f"  /runs/…{page:<55}{row(found, digits=2)}")


def show_filters(run: str, server: subprocess.Popen[str], rounds: int) -> None:
    """Milliseconds of the list of episodes under each filter, by turns."""
    taken: dict[str, list[tuple[float, float]]] = {urlencode(fields): [] for fields in FILTERS}
    with httpx.Client(timeout=60) as client:
        for _ in range(rounds):
            for fields, found in taken.items():
                began, used = time.perf_counter(), cpu_of(server)
                client.get(f"{run}/episodes?{fields}").raise_for_status()
                found.append((1000 * (time.perf_counter() - began), 1000 * (cpu_of(server) - used)))
    print(f"milliseconds of the list of episodes, of {rounds}:{'median':>21}{'longest':>10}{'CPU':>10}")
    for fields, found in taken.items():
        print(f"  {fields or 'no filter':<62}{row(found)}")


def cpu_of(server: subprocess.Popen[str]) -> float:
    """Seconds of CPU that the server has used, in steps of 10 ms."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def row(found: list[tuple[float, float]], digits: int = 0) -> str:
    """The median and the longest of the times that passed, and the median of those of the CPU."""
    passed, used = zip(*found, strict=True)
    values = (statistics.median(passed), max(passed), statistics.median(used))
    return "".join(f"{value:10.{digits}f}" for value in values)


def show_memory(server: subprocess.Popen[str], when: str) -> None:
    """What the server keeps in memory."""
    memory = psutil.Process(server.pid).memory_full_info()
    print(f"megabytes of the server {when}: {memory.uss / 1e6:.0f} of its own, {memory.rss / 1e6:.0f} resident")


def show_commits(folder: Path, url: str, commits: int, tabs: int) -> None:
    """Milliseconds of a commit of 64 episodes, with and without pages that ask, by turns of some commits."""
    maker, paths = Maker(seed=1), ("/episodes", "", "/episodes?outcome=failed")
    urls = [f"{url}/runs/{folder.name}{paths[number % len(paths)]}" for number in range(tabs)]
    taken: dict[str, list[float]] = {"nobody": [], f"{tabs} pages": []}
    answers = 0
    group = int(time.time()) * 1000  # One that the run does not have yet.
    with EpisodeStore(folder / "episodes.sqlite") as store:
        for turn in range(-(-commits // _TURN)):
            who = list(taken)[turn % 2]
            with polling(urls if turn % 2 else []) as answered:
                for _ in range(_TURN):
                    episodes = [each for one in range(8) for each in maker.group("train", group + one, 0, 0.5)]
                    group += 8
                    began = time.perf_counter()
                    store.submit(episodes).result()
                    taken[who].append(1000 * (time.perf_counter() - began))
                    time.sleep(_STEP_S)
            answers += len(answered)
    print("milliseconds of a commit of 64 episodes while the store is read by (median, longest):")
    for who, found in taken.items():
        print(f"  {who:<20}{statistics.median(found):8.1f}{max(found):8.1f}")
    print(f"  the pages were asked for {answers} times")


@contextlib.contextmanager
def polling(urls: list[str]) -> Iterator[list[int]]:
    """Ask for each of ``urls`` every 2 seconds, as a page's script does; the value gathers the statuses of answers."""
    ended, answered = threading.Event(), list[int]()

    def ask(url: str, after: float) -> None:
        tag: dict[str, str] = {}
        with httpx.Client(timeout=60) as client:
            while not ended.wait(after):
                answer = client.get(url, headers=tag)
                answered.append(answer.status_code)
                tag = {"if-none-match": answer.headers["etag"]} if "etag" in answer.headers else {}
                after = 2.0

    threads = [threading.Thread(target=ask, args=(url, 2.0 * n / len(urls))) for n, url in enumerate(urls)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
