"""What a run has on disk beyond its checkpoint is taken up again: nothing is lost, and nothing is run twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rollout.dispatching import dispatcher_of, in_time
from tests.runs.test_store import make_episode

from agentrl.config import load_config
from agentrl.config.models import Config
from agentrl.errors import RunError
from agentrl.rollout.buffer import GroupBuffer, Taken
from agentrl.rollout.contract import Episode, Group
from agentrl.rollout.staleness import StalenessBound
from agentrl.runs.contract import Membership, MetricsLine
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore
from agentrl.training.replay import Lineage, Replay
from agentrl.training.requests import group_request
from agentrl.training.stopwatch import Stopwatch
from agentrl.training.supply import GroupSupply
from agentrl.training.task_order import TaskOrder

PER_STEP, GROUP, STEPS = 2, 3, 6


async def sleeps(data):
    await asyncio.sleep(data["seconds"])
    return 1.0


class Sampling:
    """A run that trains nothing, over one task for each of ``seconds``; it knows what it rolled out and took."""

    def __init__(self, seconds: list[float], bound: int) -> None:
        names = (f"rollout.tasks_per_step={PER_STEP}", f"rollout.group_size={GROUP}", f"training.steps={STEPS}")
        self.config: Config = load_config(None, *names, f"rollout.max_staleness={bound}", environ={})
        self.rows = [{"number": number, "seconds": each} for number, each in enumerate(seconds)]
        self.stored: list[Episode] = []
        self.taken: list[Taken] = []

    def supply(self) -> GroupSupply:
        bound = StalenessBound(self.config.rollout.max_staleness, PER_STEP)
        return GroupSupply(
            self.config,
            dispatcher_of(sleeps, concurrency=5, kept=self.stored),
            TaskOrder(self.rows, 0),
            GroupBuffer(bound, "wait"),
            qualifies=lambda group: True,
            stopwatch=Stopwatch(),
        )

    def replay(self, path: Path, version: int) -> Replay:
        """What is in a store that holds all of it; a second writer stores it as a run does."""
        path.unlink(missing_ok=True)
        with EpisodeStore(path) as store:
            store.submit(self.stored).result()
            for step, taken in enumerate(self.taken, start=1):
                store.begin_step(Membership(step, tuple(group.ordinal for group in taken.groups))).result()
        return Replay(EpisodeReader(path), version, self.samples)

    def samples(self, ordinal: int, attempt: int):
        return group_request(self.config, TaskOrder(self.rows, 0), ordinal, lambda: 0, attempt=attempt).samples

    async def train(self, supply: GroupSupply, until: int, *, then: float = 0.0) -> None:
        """Take the groups of every step up to ``until``, and let episodes go on for a moment."""
        async with supply:
            while len(self.taken) < until:
                self.taken.append(await supply.take())
                supply.served(len(self.taken))
            await asyncio.sleep(then)


def keys(groups: Sequence[Group]) -> list[str]:
    return [str(episode.key) for group in groups for episode in group.episodes]


waits = st.lists(st.sampled_from([0.0, 0.002, 0.006]), min_size=1, max_size=5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(waits, st.integers(0, 2), st.integers(0, STEPS - 1), st.sampled_from([0.0, 0.003]), st.data())
def test_a_run_that_ends_anywhere_takes_every_group_once_and_runs_every_episode_once(
    tmp_path: Path, seconds: list[float], bound: int, steps: int, then: float, draw: st.DataObject
) -> None:
    run = Sampling(seconds, bound)
    in_time(run.train(run.supply(), steps, then=then))
    before = list(run.stored)
    replay = run.replay(tmp_path / "episodes.sqlite", draw.draw(st.integers(0, steps)))
    repeated = [keys(taken.groups) for _, taken in replay.steps()]
    assert repeated == [keys(taken.groups) for taken in run.taken[replay.version :]]
    assert (replay.last, len(replay)) == (steps, steps - replay.version)

    resumed = run.supply()
    resumed.take_up(replay.open_groups(), steps)
    in_time(run.train(resumed, STEPS))
    trained = [group for taken in run.taken for group in taken.groups]
    assert sorted(group.ordinal for group in trained) == list(range(STEPS * PER_STEP))
    assert all(len(group.episodes) == GROUP for group in trained)
    assert Counter(episode.key for episode in run.stored) == Counter(
        {episode.key: 1 for group in trained for episode in group.episodes}
    )
    assert run.stored[: len(before)] == before


def test_a_group_that_was_dropped_comes_again_and_what_it_had_is_left(tmp_path: Path) -> None:
    samples = {0: range(2), 1: range(4, 6)}
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(group, sample=sample) for group in (0, 1, 2) for sample in (0, 1)]).result()
        store.begin_step(Membership(1, (0,), stale=(1,))).result()
        store.submit([make_episode(1, sample=sample) for sample in (4, 5)]).result()
        store.begin_step(Membership(2, (1,), left_out=(2,))).result()
        store.submit([make_episode(4, sample=0)]).result()
        replay = Replay(EpisodeReader(store.path), 0, lambda ordinal, attempt: samples[attempt])
        (_, first), (_, second) = replay.steps()
        begun = replay.open_groups()

    assert (keys(first.groups), keys(first.stale)) == (["train-0-0-0", "train-0-0-1"], ["train-1-0-0", "train-1-0-1"])
    assert keys(second.groups) == ["train-1-0-4", "train-1-0-5"]
    assert keys(second.left_out) == ["train-2-0-0", "train-2-0-1"]
    assert (begun.taken, begun.dropped, begun.next) == ({0, 1, 2}, {1: 1}, 5)
    assert {ordinal: [e.key.sample for e in episodes] for ordinal, episodes in begun.episodes.items()} == {4: [0]}


def test_a_step_of_which_an_episode_is_missing_cannot_be_repeated(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(0, sample=0)]).result()
        store.begin_step(Membership(1, (0,))).result()
        replay = Replay(EpisodeReader(store.path), 0, lambda ordinal, attempt: range(2))
        with pytest.raises(RunError, match=r"has no sample 1 of group 0, which a step has taken"):
            list(replay.steps())
        with pytest.raises(RunError, match=r"which groups step 3 took, and not those of step 2 before it"):
            replay.check_next(3, 1)


@pytest.mark.parametrize("exact", [True, False])
def test_weights_are_lost_from_the_first_step_on_that_comes_out_otherwise(exact: bool) -> None:
    logged = [MetricsLine(step, 0.0, {"policy/loss": 0.5 * step, "seconds/step": 1.0}) for step in (1, 2)]
    lineage = Lineage(logged, exact=exact)
    episodes = [make_episode(version, sample=sample) for version in (1, 2, 3) for sample in (0, 1)]
    lineage.add(episodes[::2])
    assert not lineage.is_lost_by(1, {"policy/loss": 0.5, "seconds/step": 7.0})
    assert lineage.lost_tokens([Group(0, tuple(episodes))]) == 0
    assert lineage.is_lost_by(2, {"policy/loss": 0.75})
    assert not lineage.is_lost_by(3, {"policy/loss": 9.0})
    assert (
        lineage.lost_tokens([Group(0, tuple(episodes))]) == 4
    )  # Two tokens of each version from 2 on that was stored.
    assert Lineage(logged, exact=exact).is_lost_by(3, {}) is not exact
