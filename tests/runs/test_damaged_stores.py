"""A store that is cut off, overwritten, empty or locked is a sentence for whoever reads it, and never another error."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runs import old_stores
from tests.runs.test_reader import EPISODES
from tests.runs.test_trained import made

from agentrl.errors import RunError
from agentrl.runs import schema
from agentrl.runs.contract import Membership
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore

READS: dict[str, Callable[[EpisodeReader], Any]] = {
    "rows": lambda reader: reader.rows(sort="surprise", descending=True),
    "rows of a tool": lambda reader: reader.rows(tool="search"),
    "rows with a text": lambda reader: reader.rows(text="maybe"),
    "row": lambda reader: reader.row("train-0-1-0"),
    "count": lambda reader: reader.count(fate="trained"),
    "counts": lambda reader: reader.counts("tool"),
    "groups": lambda reader: reader.groups(step=1),
    "episode": lambda reader: reader.episode("train-0-1-0"),
    "trained": lambda reader: reader.trained("train-0-1-0"),
    "load": lambda reader: list(reader.load()),
    "whole": lambda reader: list(reader.whole()),
    "outlines": lambda reader: list(reader.outlines()),
    "memberships": lambda reader: reader.memberships(),
    "untaken": lambda reader: list(reader.untaken()),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store of several pages of every table."""
    path = tmp_path_factory.mktemp("whole") / "episodes.sqlite"
    with EpisodeStore(path) as store:
        store.submit(EPISODES * 8)
        store.begin_step(Membership(1, (0, 1)))
        store.record_training(1, [made(episode, 1.0, 2.0) for episode in EPISODES if episode.key.group < 2]).result()
    return path.read_bytes()


def read_all(path: Path) -> list[str]:
    """What each way to read the file says where it cannot. Any other error than ``RunError`` is raised."""
    said = []
    for read in READS.values():
        try:
            read(EpisodeReader(path))
        except RunError as error:
            said.append(str(error))
    return said


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_reading_a_damaged_store_gives_values_or_a_sentence(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    path = tmp_path / "episodes.sqlite"
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(whole) - 1)) :]
    chance = random.Random(data.draw(st.integers()))
    for _ in range(data.draw(st.integers(0, 6))):
        first = data.draw(st.integers(0, len(damaged)))
        size = data.draw(st.sampled_from([1, 16, 4096]))
        damaged[first : first + size] = chance.randbytes(len(damaged[first : first + size]))
    path.write_bytes(damaged)
    for sentence in read_all(path):
        assert "\n" not in sentence


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (700, "is (damaged|not an episode store)"),
        (0.5, "is damaged: .* malformed"),
    ],
)
def test_a_store_that_is_cut_off_is_named(tmp_path: Path, whole: bytes, left: float, said: str) -> None:
    path = tmp_path / "episodes.sqlite"
    path.write_bytes(whole[: int(left * len(whole)) if isinstance(left, float) else left])
    for opening in (lambda: list(EpisodeReader(path).load()), lambda: EpisodeStore(path).close()):
        with pytest.raises(RunError, match=rf"episodes\.sqlite {said}"):
            opening()


def test_an_empty_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    path.touch()
    with pytest.raises(RunError, match=r"episodes\.sqlite is empty \(wait where its run has just begun, else restore"):
        EpisodeReader(path).count()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trees SET spans = '[[0]]'",
        "UPDATE trees SET ids = x'00'",
        "UPDATE calls SET request = '{\"messages\": ['",
        "UPDATE calls SET normalised = '[{\"a\": 1}]'",
        "UPDATE calls SET delivered = NULL, overridden = 'null'",
        "UPDATE episodes SET setbacks = '3'",
        "UPDATE episodes SET call_rewards = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_value_that_no_writer_has_written_is_damage(tmp_path: Path, whole: bytes, change: str) -> None:
    path = tmp_path / "episodes.sqlite"
    path.write_bytes(whole)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        connection.execute(change)
    except sqlite3.IntegrityError:
        connection.execute(change.replace("delivered = NULL, ", ""))
    connection.close()
    with pytest.raises(RunError, match=r"the episode store .*episodes\.sqlite is damaged: "):
        list(EpisodeReader(path).load())


def test_a_fate_that_no_writer_has_written_is_damage(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "episodes.sqlite"
    path.write_bytes(whole)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE trained SET fates = x'0909'")
    connection.close()
    with pytest.raises(RunError, match=r"is damaged: a value in it cannot be read \(IndexError"):
        list(EpisodeReader(path).whole())


@pytest.mark.parametrize("version", [4, 8, schema.SCHEMA_VERSION])
def test_a_locked_store_is_named_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(schema, "_BUSY_READING_SECONDS", 0.0)
    path = tmp_path / "episodes.sqlite"
    if version == schema.SCHEMA_VERSION:
        EpisodeStore(path).close()
    else:
        old_stores.write(path, version, [(1, EPISODES[2])])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        RunError, match=r"cannot read .* another process has kept it locked for 0 s \(close the program"
    ):
        EpisodeReader(path).count()
    other.close()
    assert isinstance(EpisodeReader(path).count(), int)
