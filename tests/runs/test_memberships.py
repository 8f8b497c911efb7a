"""What each step takes is on disk before the step, and is read back as what the step had."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.algorithms.algorithms import grpo
from tests.algorithms.episodes import Recorder, wandering_groups
from tests.runs.test_store import make_episode

from agentrl.algorithms.batch import build_batch
from agentrl.errors import RunError
from agentrl.inference.contract import Grammar
from agentrl.rollout.contract import Episode, Failure, Group
from agentrl.runs.contract import Membership
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore

ORDINALS = st.lists(st.integers(0, 2**53), max_size=4).map(tuple)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Membership, st.integers(1, 2**53), ORDINALS, ORDINALS, ORDINALS), unique_by=lambda m: m.step))
def test_memberships_read_back_as_they_were_written_in_the_order_of_their_steps(
    tmp_path: Path, memberships: list[Membership]
) -> None:
    path = tmp_path / "episodes.sqlite"
    path.unlink(missing_ok=True)
    with EpisodeStore(path) as store:
        for membership in memberships:
            store.begin_step(membership).result()
        expected = tuple(sorted(memberships, key=lambda each: each.step))
        assert EpisodeReader(path).memberships() == expected
        if expected:
            assert EpisodeReader(path).memberships(after=expected[0].step) == expected[1:]


def test_a_membership_outlives_a_kill_at_the_moment_when_its_step_may_begin(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from agentrl.runs.contract import Membership
        from agentrl.runs.store import EpisodeStore
        EpisodeStore(Path(sys.argv[1])).begin_step(Membership(1, (0, 2), (1,))).result()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "episodes.sqlite"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False, timeout=60)
    assert EpisodeReader(path).memberships() == (Membership(1, (0, 2), (1,)),)


def test_a_step_begins_once(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.begin_step(Membership(1, (0,))).result()
        with pytest.raises(RunError, match=r"UNIQUE constraint failed: steps\.step"):
            store.begin_step(Membership(1, (1,))).result()
        store.begin_step(Membership(2, (1,))).result()
        assert [each.trained for each in EpisodeReader(store.path).memberships()] == [(0,), (1,)]


def test_episodes_are_untaken_until_a_step_trains_or_leaves_out_their_group(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        reader = EpisodeReader(store.path)

        def untaken() -> list[tuple[int, int]]:
            return [(episode.key.group, episode.key.sample) for episode in reader.untaken()]

        store.submit([make_episode(0, phase="eval")]).result()
        store.submit([make_episode(group, sample=sample) for sample in (1, 0) for group in (0, 1, 2)]).result()
        assert untaken() == [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (2, 0)]
        store.begin_step(Membership(1, (2,), (0,), (1,))).result()
        assert untaken() == [(1, 1), (1, 0)]
        store.begin_step(Membership(2, (1,))).result()
        assert untaken() == []


def test_more_untaken_episodes_than_are_read_at_once_are_all_there(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(group) for group in range(300)]).result()
        store.begin_step(Membership(1, tuple(range(20)))).result()
        assert [episode.key.group for episode in EpisodeReader(store.path).untaken()] == list(range(20, 300))


FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


def recorded_groups(seed: int, draw: st.DataObject) -> list[Group]:
    """Groups as a run has them: branching trees, rewards by call, grammars, answers that came too late, failures."""
    made = wandering_groups(random.Random(seed), 11)
    return [
        Group(group.task, tuple(drawn(episode, ordinal, draw) for episode in group.episodes))
        for ordinal, group in enumerate(made)
    ]


def drawn(episode: Episode, ordinal: int, draw: st.DataObject) -> Episode:
    recorder = Recorder(random.Random(draw.draw(st.integers(0, 99))), 11, episode.tree, list(episode.calls))
    recorder.call(
        [3, 1, 4],
        draw.draw(st.integers(1, 4)),
        constrained=True,
        version=draw.draw(st.integers(0, 5)),
        temperature=draw.draw(st.floats(0.01, 3)),
        grammar=draw.draw(st.sampled_from([Grammar("regex", "a|b"), Grammar("json_object"), None])),
        stop_ids=(9, 10),
    )
    calls = tuple(replace(call, delivered=draw.draw(st.booleans())) for call in recorder.calls)
    known = {"key": replace(episode.key, group=ordinal), "calls": calls}
    if draw.draw(st.integers(0, 5)) == 0:
        known |= {"outcome": "failed", "reward": None, "call_rewards": {}, "failure": Failure("agent", "gone")}
    elif episode.outcome == "rewarded" and not episode.call_rewards:
        known |= {"reward": draw.draw(FLOATS), "reward_parts": draw.draw(st.dictionaries(st.text("ab"), FLOATS))}
    return replace(episode, **known)  # type: ignore[arg-type]


class EveryThird:
    """Allows every third token, and what was sampled."""

    vocabulary = 11
    everything = np.packbits(np.ones((1, 16), bool), axis=1, bitorder="little")[0]

    def masks(self, grammar: Grammar, stop_ids: Sequence[int], ids: Sequence[int]) -> np.ndarray[Any, Any]:
        rows = np.zeros((len(ids), 16), bool)
        rows[:, len(grammar.text) % 3 :: 3] = True
        rows[np.arange(len(ids)), ids] = True
        return np.packbits(rows, axis=1, bitorder="little")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.data())
def test_a_batch_of_groups_that_were_read_back_is_that_of_the_groups_to_the_bit(
    tmp_path: Path, seed: int, draw: st.DataObject
) -> None:
    groups = recorded_groups(seed, draw)
    path = tmp_path / "episodes.sqlite"
    path.unlink(missing_ok=True)
    with EpisodeStore(path) as store:
        store.submit([episode for group in reversed(groups) for episode in group.episodes]).result()
        loaded = list(EpisodeReader(path).untaken())
    back = [
        Group(group.task, tuple(episode for episode in loaded if episode.key.group == ordinal))
        for ordinal, group in enumerate(groups)
    ]
    for choices in (False, True):
        (one, account), (other, account_back) = (
            build_batch(each, grpo(), allowed=EveryThird(), choices=choices) for each in (groups, back)
        )
        assert repr(account) == repr(account_back)
        assert account.tokens.fates.tobytes() == account_back.tokens.fates.tobytes()
        assert bits(one) == bits(other)


def bits(batch: Any) -> list[object]:
    """Every array of a batch as its type, shape and bytes."""
    arrays = [*batch.paths, batch.logprob, batch.version, batch.advantage, batch.weight, batch.call]
    targets = batch.targets
    arrays += [targets.path, targets.depth, targets.token, targets.temperature, targets.masks, targets.mask]
    return [None if each is None else (each.dtype, each.shape, each.tobytes()) for each in arrays] + [batch.labels]
