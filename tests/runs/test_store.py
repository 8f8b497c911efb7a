"""The episode store keeps every episode, whole, before anybody may train on it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.errors import RunError, encodable
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure, Phase
from agentrl.runs import schema
from agentrl.runs import store as store_module
from agentrl.runs.contract import Membership
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree


def make_episode(step: int = 0, task: int = 0, sample: int = 0, phase: Phase = "train", **fields: object) -> Episode:
    tree = TokenTree()
    prompt = tree.add_given([1, 2, 3])
    tree.add_sampled([4, 5], Sampled("call-1", (-0.5, -0.25), (step, step), 1.0), prompt)
    call = Call(
        "call-1",
        None,
        {"messages": [{"role": "user", "content": "2+2?"}]},
        {"role": "assistant", "content": "4"},
        "stop",
        3,
        2,
    )
    known = {"data": {"question": "2+2?"}, "outcome": "rewarded", "reward": 1.0, "calls": (call,), "tree": tree}
    return Episode(key=EpisodeKey(phase, step, task, sample), **(known | fields))  # type: ignore[arg-type]


def stored_in(store: EpisodeStore, **filters: Any) -> Iterator[Episode]:
    return EpisodeReader(store.path).load(**filters)


def limit_pages(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """Fill the disk: SQLite may not make the file larger than this."""
    plain: Callable[..., sqlite3.Connection] = sqlite3.connect

    def connect(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = plain(*args, **kwargs)
        if "uri" not in kwargs:
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(schema.sqlite3, "connect", connect)


WRITTEN = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\ud83d"), max_size=8)
"""Whatever a policy may write: half a character too, which JSON can hold and UTF-8 cannot."""


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WRITTEN, WRITTEN), min_size=1, max_size=8))
def test_any_text_is_stored_wherever_it_stands(tmp_path: Path, texts: list[tuple[str, str]]) -> None:
    episodes = [
        make_episode(
            sample=sample,
            data={one: other},
            answer={other: one},
            mistake=one,
            failure=Failure("agent", other),
            calls=(Call("call-1", None, {"messages": [one]}, {"content": other}, one, 1, 1, fork_reason=other),),
        )
        for sample, (one, other) in enumerate(texts)
    ]
    path = tmp_path / "episodes.sqlite"
    path.unlink(missing_ok=True)
    with EpisodeStore(path) as store:
        asyncio.run(store.commit(episodes))
        spelled = [replace(each, mistake=each.mistake and encodable(each.mistake)) for each in episodes]
        assert list(stored_in(store)) == spelled


def test_what_is_committed_reads_back_equal_and_in_order(tmp_path: Path) -> None:
    first, second = make_episode(sample=0), make_episode(sample=1, reward=0.0, answer="5", attempts=2, seconds=1.5)
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        asyncio.run(store.commit([first]))
        asyncio.run(store.commit([second]))
        assert list(stored_in(store)) == [first, second]


def test_episodes_are_found_by_phase_and_version(tmp_path: Path) -> None:
    stored = [
        make_episode(group, sample=sample, phase=phase, version=group)
        for phase in ("train", "eval", "eval-greedy")
        for group in (0, 20)
        for sample in (0, 1)
    ]
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit(stored).result()
        assert [e.key for e in stored_in(store, phase="eval", version=20)] == [
            EpisodeKey("eval", 20, 0, 0),
            EpisodeKey("eval", 20, 0, 1),
        ]
        assert len(list(stored_in(store, phase="eval-greedy"))) == 4
        assert len(list(stored_in(store, version=20))) == 6


def test_the_step_that_trained_a_group_is_noted_apart_from_the_version_that_sampled_it(tmp_path: Path) -> None:
    stored = [
        make_episode(group, sample=sample, phase=phase, version=group)
        for group in (3, 4, 5)
        for phase in ("train", "eval")
        for sample in (0, 1)
    ]
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:

        async def scenario() -> None:
            await store.commit(stored)
            await asyncio.wrap_future(store.begin_step(Membership(8, (3, 5))))

        asyncio.run(scenario())
        trained = [(e.key.phase, e.key.group, e.version, e.trained_step) for e in stored_in(store, step=8)]
        assert trained == [("train", 3, 3, 8)] * 2 + [("train", 5, 5, 8)] * 2
        assert {e.trained_step for e in stored_in(store) if e not in list(stored_in(store, step=8))} == {None}


def test_of_a_group_that_has_come_again_only_what_a_step_trains_is_noted(tmp_path: Path) -> None:
    stored = [make_episode(3, sample=sample) for sample in range(4)]
    again = [episode.key for episode in stored[2:]]
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit(stored).result()
        store.begin_step(Membership(8, (3,)), again).result()
        assert [episode.key for episode in stored_in(store, step=8)] == again
        assert {e.trained_step for e in stored_in(store)} == {None, 8}


def test_more_groups_are_noted_at_once_than_a_statement_takes_values(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(group) for group in range(2500)]).result()
        store.begin_step(Membership(1, tuple(range(2500)))).result()
        assert {e.trained_step for e in stored_in(store)} == {1}
        store.begin_step(Membership(2, ()), [episode.key for episode in stored_in(store)] * 8).result()
        assert {e.trained_step for e in stored_in(store)} == {2}


def test_a_reader_pages_through_more_episodes_than_it_takes_at_once(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(task=task) for task in range(256)]).result()
        assert [e.key.task for e in stored_in(store)] == list(range(256))


def test_failed_and_rejected_episodes_are_kept_with_their_reasons(tmp_path: Path) -> None:
    failed = make_episode(
        outcome="failed", reward=None, failure=Failure("agent", "KeyError: 'x' \x00 \ud800"), calls=()
    )
    rejected = make_episode(sample=1, outcome="rejected", reward=None)
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([failed, rejected]).result()
        assert list(stored_in(store)) == [failed, rejected]


def test_an_answer_that_json_cannot_carry_is_kept_as_its_repr(tmp_path: Path) -> None:
    answer = {"value": complex(1, 2), "ok": [1, 2]}
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(answer=answer), make_episode(answer={(1, 2): "key"})]).result()
        assert [e.answer for e in stored_in(store)] == [{"value": "(1+2j)", "ok": [1, 2]}, "{(1, 2): 'key'}"]


def test_an_episode_that_cannot_be_stored_harms_no_other(tmp_path: Path) -> None:
    good, bad = make_episode(task=1), make_episode(task=2, data={"x": object()})

    async def commit_both() -> list[BaseException | None]:
        return await asyncio.gather(store.commit([good]), store.commit([bad]), return_exceptions=True)

    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        fine, error = asyncio.run(commit_both())
        assert fine is None
        assert str(error) == "episode train-0-2-0 cannot be stored: Object of type object is not JSON serializable"
        assert list(stored_in(store)) == [good]


@pytest.mark.parametrize("together", [True, False])
def test_a_task_is_stored_once_however_many_episodes_it_has(tmp_path: Path, together: bool) -> None:
    path = tmp_path / "episodes.sqlite"
    big, other = {"question": "x" * 200_000}, {"question": "y"}
    episodes = [
        make_episode(sample=sample, phase=phase, data=data)  # another dict each time, as a run's are
        for phase in ("train", "eval")
        for sample in range(8)
        for data in (dict(big), dict(other))
    ]
    with EpisodeStore(path) as store:
        for commit in [episodes] if together else [[episode] for episode in episodes]:
            store.submit(commit).result()
    assert list(EpisodeReader(path).load()) == episodes
    assert path.stat().st_size < 1.5 * 200_000


def test_many_waiters_are_committed_together_and_none_is_lost(tmp_path: Path) -> None:
    async def commit_all() -> None:
        await asyncio.gather(*(store.commit([make_episode(task=task)]) for task in range(500)))

    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        asyncio.run(commit_all())
        assert {e.key.task for e in stored_in(store)} == set(range(500))


def test_a_cancelled_wait_does_not_undo_the_commit(tmp_path: Path) -> None:
    async def cancel() -> None:
        waiting = asyncio.create_task(store.commit([make_episode()]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        asyncio.run(cancel())
    assert len(list(EpisodeReader(tmp_path / "episodes.sqlite").load())) == 1


def test_an_event_loop_that_is_gone_by_then_does_not_stop_the_writer(tmp_path: Path) -> None:
    async def leave() -> None:
        await asyncio.wait({asyncio.create_task(store.commit([make_episode(task=0)]))}, timeout=0)

    path = tmp_path / "episodes.sqlite"
    with EpisodeStore(path) as store:
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")  # the writer waits for it, the event loop does not
        asyncio.run(leave())
        other.rollback()
        other.close()
        asyncio.run(store.commit([make_episode(task=1)]))
    assert [episode.key.task for episode in EpisodeReader(path).load()] == [0, 1]


def test_closing_commits_what_was_submitted_and_refuses_more(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path / "episodes.sqlite")
    futures = [store.submit([make_episode(task=task)]) for task in range(50)]
    store.close()
    store.close()
    assert all(future.done() for future in futures)
    assert len(list(stored_in(store))) == 50
    with pytest.raises(RunError, match="is closed"):
        store.submit([make_episode()])


def test_a_killed_run_keeps_every_committed_episode(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        sys.path[:0] = [{tests!r}]
        from pathlib import Path
        from test_store import make_episode
        from agentrl.runs.store import EpisodeStore
        store = EpisodeStore(Path({path!r}))
        store.submit([make_episode(task=task) for task in range(20)]).result()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "episodes.sqlite"
    code = textwrap.dedent(script).format(tests=str(Path(__file__).parent), path=str(path))
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(EpisodeReader(path).load())) == 20
    with EpisodeStore(path) as store:
        store.submit([make_episode(task=20)]).result()
        assert len(list(stored_in(store))) == 21


def test_another_process_reads_while_the_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    code = "import sys; from pathlib import Path; from agentrl.runs.episodes import EpisodeReader\n"
    code += "print([e.key.task for e in EpisodeReader(Path(sys.argv[1])).load()])"
    with EpisodeStore(path) as store:
        store.submit([make_episode(task=7)]).result()
        reading = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert reading.stdout == "[7]\n"
        store.submit([make_episode(task=8)]).result()


def test_a_slow_reader_does_not_keep_the_writer_waiting(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([make_episode(task=task) for task in range(200)]).result()
        reader = stored_in(store)
        next(reader)
        store.submit([make_episode(task=200)]).result(timeout=5)
        assert len(list(reader)) == 200


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    with EpisodeStore(path), pytest.raises(RunError, match=r"another run is writing to .*set run\.name"):
        EpisodeStore(path)
    EpisodeStore(path).close()


def test_a_full_disk_fails_the_commit_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_pages(monkeypatch, 16)
    path = tmp_path / "episodes.sqlite"
    small = [make_episode(task=task) for task in range(3)]
    large = [make_episode(task=task, data={"text": f"{task}" * 20_000}) for task in range(10)]
    with EpisodeStore(path) as store:
        store.submit(small).result()
        with pytest.raises(RunError, match=r"cannot write .*episodes\.sqlite: .*full.* \(free some space"):
            asyncio.run(store.commit(large))
        assert list(stored_in(store)) == small
        store.submit([make_episode(task=4)]).result()
    assert len(list(EpisodeReader(path).load())) == 4


def test_a_program_that_keeps_the_file_locked_is_named_and_the_next_commit_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_BUSY_SECONDS", 0.0)
    path = tmp_path / "episodes.sqlite"
    with EpisodeStore(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match=r"another process has kept it locked .*close the program"):
            store.submit([make_episode(task=1)]).result()
        other.close()
        store.submit([make_episode(task=2)]).result()
        assert [e.key.task for e in stored_in(store)] == [2]


def test_a_value_that_sqlite_cannot_hold_keeps_nobody_waiting(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        with pytest.raises(OverflowError):
            store.submit([make_episode(task=2**70)]).result()
        store.submit([make_episode()]).result()


def test_a_file_system_without_a_write_ahead_log_gets_a_rollback_journal_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "is_network_filesystem", lambda path: True)
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        assert store.journal_mode == "delete"
        assert "rollback journal" in store.notes[0]
        store.submit([make_episode()]).result()
        assert list(stored_in(store)) == [make_episode()]


def test_a_vfs_that_cannot_share_memory_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., sqlite3.Connection] = sqlite3.connect
    monkeypatch.setattr(
        schema.sqlite3,
        "connect",
        lambda path, **kwargs: plain(
            path if "uri" in kwargs else f"file:{path}?vfs=unix-dotfile", **kwargs | {"uri": True}
        ),
    )
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        assert store.journal_mode == "delete"
        store.submit([make_episode()]).result()


def test_an_ordinary_disk_needs_no_note(tmp_path: Path) -> None:
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        assert store.journal_mode == "wal"
        assert store.notes == []


def test_a_closed_store_is_one_file_that_reads_from_a_read_only_folder(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    with EpisodeStore(path) as store:
        store.submit([make_episode()]).result()
    assert [file.name for file in tmp_path.iterdir()] == ["episodes.sqlite"]
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    assert len(list(EpisodeReader(path).load())) == 1
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_file_that_is_no_store_is_named(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "episodes.sqlite"
    path.write_text("not a database, though long enough to be looked at as if it were one " * 20)
    with pytest.raises(RunError, match=r"episodes\.sqlite is not an episode store"):
        list(EpisodeReader(path).load()) if verb == "read" else EpisodeStore(path)


def test_another_database_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match="is not an episode store"):
        EpisodeStore(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "episodes.sqlite"
    EpisodeStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RunError, match=f"has schema 99 and this agentrl reads 1 to {schema.SCHEMA_VERSION} "):
        EpisodeStore(path)


def test_no_store_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no episode store at"):
        list(EpisodeReader(tmp_path / "episodes.sqlite").load())


def test_what_is_counted_of_an_episode_is_stored_with_it(tmp_path: Path) -> None:
    setbacks = (Failure("backend", "lost 1 \ud83d", "lost"), Failure("worker", "gone"))
    stored = make_episode(mistake="no such tool", mistake_fingerprint="tool \ud83d", setbacks=setbacks)
    with EpisodeStore(tmp_path / "episodes.sqlite") as store:
        store.submit([stored]).result()
        (read,) = stored_in(store)
    assert read.mistake_fingerprint == stored.mistake_fingerprint
    assert [(each, each.kind) for each in read.setbacks] == [(each, each.kind) for each in setbacks]


def test_a_disk_that_does_not_answer_is_named_by_whoever_waits_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.1)
    end = threading.Event()
    monkeypatch.setattr(EpisodeStore, "_write", lambda self, commits: end.wait(30))
    store = EpisodeStore(tmp_path / "episodes.sqlite")
    late = r"waited 0\.1 s for the episode store .*episodes\.sqlite to be written .*run\.dir"
    try:
        with pytest.raises(RunError, match=late):
            asyncio.run(store.commit([make_episode(task=0)]))
        with pytest.raises(RunError, match=late):
            store.close()
    finally:
        end.set()
    store.close()
