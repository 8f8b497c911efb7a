"""Stores of every earlier schema are read as they are, and rewritten when a run writes to them again."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agentrl.errors import RunError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs import schema
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree

sys.path.insert(0, str(Path(__file__).parent))
import old_stores

VERSIONS = range(1, schema.SCHEMA_VERSION)


def stored_episodes(version: int) -> list[tuple[int, Episode]]:
    """What a run of that time stored, each with the ``step`` of its key before schema 5, as it reads today."""

    def episode(phase: str, step: int, group: int, task: int, sample: int, **fields: object) -> tuple[int, Episode]:
        tree = TokenTree()
        prompt = tree.add_given([1, 2, 3])
        after = tree.add_sampled([4, 5], Sampled("call-1", (-0.1, -0.25), (step, step), 0.7), prompt)
        tree.add_sampled([9], Sampled("call-2", (-0.5,), (step,), 1.0, constrained=True), tree.add_given([6], after))
        asked = {"role": "user", "content": f'What is {task} + {task}? "Grüezi" \ud83d'}
        answered = {"role": "assistant", "content": "so be it"}
        first = Call("call-1", None, {"messages": [asked], "n": 1}, answered, "stop", 3, 2, overridden=("seed",))
        history = [asked, answered, {"role": "user", "content": "sure?"}]
        second = Call("call-2", "call-1", {"messages": history, "n": 1}, {"content": None}, "length", 6, 1, "edited")
        known = {
            "data": {"question": task},
            "outcome": "rewarded",
            "reward": 0.5 + sample,
            "calls": (first, second),
            "tree": tree,
            "version": max(step - 1, 0) if phase == "train" else step,
            "trained_step": step if phase == "train" else None,
            "call_rewards": {"call-1": 0.5},
            "answer": [1, "two"],
            "reward_parts": {"format": 1.0} if version >= 4 else {},
        }
        return step, Episode(EpisodeKey(phase, group, task, sample), **(known | fields))  # type: ignore[arg-type]

    failure = Failure("agent", "KeyError: \ud800", "KeyError at x.py:1" if version >= 3 else "")
    return [
        episode("eval", 0, 0, 3, 0),
        episode("train", 1, 0, 4, 0),
        episode("train", 1, 0, 4, 1, mistake="no such tool" if version >= 2 else None),
        episode("train", 1, 1, 7, 0, outcome="failed", reward=None, failure=failure, calls=(), tree=TokenTree()),
        episode("train", 2, 2, 4, 0),
        episode("eval", 2, 1, 3, 0),
    ]


def the_same(read: Sequence[Episode], stored: Sequence[tuple[int, Episode]]) -> bool:
    expected = [episode for _, episode in stored]
    fingerprints = [failure.fingerprint for episode in read if (failure := episode.failure)]
    return list(read) == expected and fingerprints == [
        failure.fingerprint for episode in expected if (failure := episode.failure)
    ]


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[tuple[int, Episode]]]:
    path, version = tmp_path / "episodes.sqlite", int(request.param)
    old_stores.write(path, version, stored_episodes(version))
    return path, stored_episodes(version)


def test_an_old_store_reads_as_it_would_be_written_today_and_is_left_alone(
    old: tuple[Path, list[tuple[int, Episode]]],
) -> None:
    path, stored = old
    before = path.read_bytes()
    reader = EpisodeReader(path)
    assert the_same(list(reader.load()), stored)
    assert reader.episode("train-2-4-0") == stored[4][1]
    assert [row.key for row in reader.rows(phase="train", step=1, sort="reward", descending=True)] == [
        EpisodeKey("train", 0, 4, 1),
        EpisodeKey("train", 0, 4, 0),
        EpisodeKey("train", 1, 7, 0),
    ]
    assert reader.counts("outcome") == {"failed": 1, "rewarded": 5}
    calls = [{name for call in episode.calls for name in schema.called_tools(call.message)} for _, episode in stored]
    assert reader.counts("tool") == Counter(name for names in calls for name in names)
    assert all(reader.count(tool=name) == count for name, count in reader.counts("tool").items())
    assert [group.ordinal for group in reader.groups(step=1)] == [0, 1]
    assert reader.rows(side="agent")[0].failure_reason == "KeyError: \ud800"
    assert [row.call_count for row in reader.rows(task=4)] == [2, 2, 2]
    assert path.read_bytes() == before


def test_messages_of_an_old_store_can_be_searched(old: tuple[Path, list[tuple[int, Episode]]]) -> None:
    reader = EpisodeReader(old[0])
    assert [row.key.task for row in reader.rows(text='"what is 7"')] == []
    assert [row.key.task for row in reader.rows(text="GRÜEZI sure")] == [3, 4, 4, 4, 3]
    assert reader.count(text="messages") == 0


def test_a_run_that_writes_to_an_old_store_rewrites_it_once(old: tuple[Path, list[tuple[int, Episode]]]) -> None:
    path, stored = old
    more = replace(stored[1][1], key=EpisodeKey("train", 3, 9, 0))
    with EpisodeStore(path) as store:
        store.submit([more]).result()
    assert the_same(list(EpisodeReader(path).load()), [*stored, (3, more)])
    assert [row.id for row in EpisodeReader(path).rows()] == [1, 2, 3, 4, 5, 6, 7]
    assert EpisodeReader(path).count(text="grüezi") == 6
    written = sqlite3.connect(path)
    assert written.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,)
    assert written.execute("PRAGMA foreign_key_check").fetchall() == []
    assert written.execute("SELECT count(*) FROM tasks").fetchone() == (3,)
    new = sqlite3.connect(":memory:")
    new.executescript(schema.SCHEMA + schema.SEARCH)
    listed = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert written.execute(listed).fetchall() == new.execute(listed).fetchall()


def test_a_rewrite_that_fails_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "episodes.sqlite"
    old_stores.write(path, 4, stored_episodes(4))
    with monkeypatch.context() as patched:
        patched.setattr("agentrl.runs.migrations.tree_row", lambda tree: 1 / 0)
        with pytest.raises(RunError, match="cannot write"):
            EpisodeStore(path)
    assert the_same(list(EpisodeReader(path).load()), stored_episodes(4))
    EpisodeStore(path).close()
    assert the_same(list(EpisodeReader(path).load()), stored_episodes(4))


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION + 1, 99])
def test_a_newer_schema_is_refused_by_readers_and_writers(tmp_path: Path, version: int) -> None:
    path = tmp_path / "episodes.sqlite"
    EpisodeStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    for opening in (lambda: EpisodeReader(path).count(), lambda: EpisodeStore(path)):
        with pytest.raises(Exception, match=rf"has schema {version} .* reads 1 to 9 \(use the version .* or a newer"):
            opening()
