"""One reader shows what a run has left, and what it has left so far."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentrl import open_run
from agentrl.config.models import Config
from agentrl.errors import ConfigError, RunError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs import schema
from agentrl.runs.contract import Checkpoint, EpisodeFilter, Membership, RunInfo, SortKey, Summary
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.folder import FolderLock, RunFolder, run_names
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.queries import condition, parse_key
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree


def make_episode(
    group: int, sample: int, said: str = "four", phase: str = "train", task: int = 0, **fields: object
) -> Episode:
    tree = TokenTree()
    tree.add_sampled([4, 5], Sampled("call-1", (-0.5, -0.25), (group, group), 1.0), tree.add_given([1, 2, 3]))
    asked = [{"role": "user", "content": f"What is {task} plus two?"}]
    call = Call("call-1", None, {"messages": asked}, {"role": "assistant", "content": said}, "stop", 3, 2)
    known = {"data": {"task": task}, "outcome": "rewarded", "reward": float(sample), "calls": (call,), "tree": tree}
    return Episode(EpisodeKey(phase, group, task, sample), **(known | fields))  # type: ignore[arg-type]


EPISODES = [
    *(make_episode(0, sample, phase="eval", task=9) for sample in range(2)),
    *(make_episode(0, sample, f"maybe {sample}", task=1, seconds=2.0 - sample) for sample in range(3)),
    make_episode(1, 0, "Five-and-a-half, naïve", task=2, version=0),
    make_episode(1, 1, task=2, outcome="failed", reward=None, failure=Failure("agent", "KeyError: 'x'", "KeyError")),
    make_episode(2, 0, task=3, version=1, outcome="rejected", reward=None),
    make_episode(2, 1, task=3, version=1, mistake="no such tool", reward=-1.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(Config.model_validate({"run": {"dir": str(tmp_path / "runs"), "name": "mine"}}))


@pytest.fixture
def run(folder: RunFolder) -> Iterator[Run]:
    """A run that is going on, after one step of the groups 0 and 1."""
    with EpisodeStore(folder.episodes) as store:
        store.submit(EPISODES).result()
        store.begin_step(Membership(1, (0, 1))).result()
        yield open_run(folder.path)


def keys(run: Run, **query: object) -> list[str]:
    return [str(row.key) for row in run.episodes(**query)]  # type: ignore[arg-type]


def test_a_run_is_found_by_its_folder_and_by_its_name(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.path.parent.parent)
    for given in (folder.path, str(folder.path), "runs/mine", "mine"):
        assert open_run(given).path.resolve() == folder.path
    assert open_run("mine", runs=folder.path.parent).name == "mine"
    assert run_names() == ["mine"]


def test_a_run_that_is_not_there_is_named_with_one_that_may_be_meant(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match=r"there is no run 'mien': .*did you mean 'mine'\?"):
        open_run("mien", runs=folder.path.parent)


def test_it_tells_what_the_run_is(run: Run) -> None:
    assert run.config.agent.name == "math"
    assert run.info == RunInfo("mine", run.path, "math", "tiny", 60, 64, "arithmetic", "arithmetic-heldout")


def test_a_run_is_running_while_a_process_writes_and_then_what_its_summary_says(folder: RunFolder) -> None:
    run = open_run(folder.path)
    assert (run.state, run.summary) == ("killed", None)
    with EpisodeStore(folder.episodes):
        assert run.state == "running"
    for outcome, state in [
        ("completed", "completed"),
        ("interrupted", "interrupted"),
        ("failed: the disk is full", "failed"),
    ]:
        folder.write_summary(Summary(outcome))
        assert (run.state, run.summary) == (state, Summary(outcome))


def test_a_killed_process_leaves_a_lock_that_nobody_holds(folder: RunFolder) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from agentrl.runs.store import EpisodeStore
        store = EpisodeStore(Path(sys.argv[1]))
        print("open", flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder.episodes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert open_run(folder.path).state == "running"
        with pytest.raises(
            RunError, match=rf"another run is writing to .*mine: process {process.pid} on {os.uname()[1]}"
        ):
            EpisodeStore(folder.episodes)
        process.send_signal(signal.SIGKILL)
    assert (folder.path / "run.lock").exists()
    assert open_run(folder.path).state == "killed"
    EpisodeStore(folder.episodes).close()
    assert not (folder.path / "run.lock").exists()


def test_a_reader_that_looks_at_the_lock_keeps_no_writer_out(folder: RunFolder) -> None:
    lock = FolderLock(folder.path)
    assert lock.held
    assert [open_run(folder.path).state for _ in range(3)] == ["running"] * 3
    lock.release()
    lock.release()
    FolderLock(folder.path).release()


def test_a_file_system_without_locks_is_written_to_with_a_note(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with EpisodeStore(folder.episodes) as store:
        assert store.notes == [f"{folder.path} cannot be locked: see to it that no second run writes there"]
        store.submit(EPISODES[:1]).result()
    assert open_run(folder.path).count() == 1


def test_checkpoints_are_listed_and_the_best_is_that_of_the_best_evaluation(folder: RunFolder) -> None:
    run = open_run(folder.path)
    assert (run.checkpoints(), run.newest_checkpoint(), run.best_checkpoint()) == ([], None, None)
    for step in (10, 20, 30):
        with folder.new_checkpoint(step):
            pass
    (folder.checkpoints / ".step-000040.part").mkdir()
    assert [saved.step for saved in run.checkpoints()] == [10, 20, 30]
    assert run.newest_checkpoint() == Checkpoint(30, folder.checkpoint(30))
    assert run.best_checkpoint() is None
    with MetricsLog(folder.metrics) as log:
        for step, reward in [(0, 0.9), (10, 0.5), (20, 0.5), (30, float("nan"))]:
            log.append(step, {"evaluation/reward": reward})
        log.append(31, {"reward/mean": 1.0})
    assert run.best_checkpoint() == Checkpoint(20, folder.checkpoint(20))
    assert [line.step for line in run.evaluations()] == [0, 10, 20, 30]
    assert [line.metrics for line in run.steps()] == [{"reward/mean": 1.0}]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 9),
        ({"phase": "eval"}, 2),
        ({"phase": "train", "group": 1}, 2),
        ({"task": 3}, 2),
        ({"version": 1}, 2),
        ({"step": 1}, 5),
        ({"step": 0}, 2),
        ({"outcome": "failed"}, 1),
        ({"side": "agent"}, 1),
        ({"side": "reward"}, 0),
        ({"min_reward": 1.0}, 3),
        ({"min_reward": -1.0, "max_reward": 0.0}, 4),
        ({"phase": None, "min_reward": None}, 9),
        ({"text": "maybe"}, 3),
        ({"text": "MAYBE 2"}, 1),
        ({"text": '"2 maybe"'}, 0),
        ({"text": '"what is 1" maybe'}, 3),
        ({"text": "five-and-a-half"}, 1),
        ({"text": '"two maybe"'}, 0),
        ({"text": "NAÏVE"}, 1),
        ({"text": "naive"}, 0),
        ({"text": "nai*"}, 0),
        ({"text": "naï*"}, 1),
        ({"text": "content"}, 0),
        ({"text": "what", "outcome": "rejected"}, 1),
        ({"text": "' OR 1; --"}, 0),
    ],
)
def test_episodes_are_filtered(run: Run, filters: dict[str, object], found: int) -> None:
    assert len(run.episodes(**filters)) == run.count(**filters) == found  # type: ignore[arg-type]
    assert len(list(run.load_episodes(**filters))) == found  # type: ignore[arg-type]


@pytest.mark.parametrize("filters", [{}, {"text": "what*"}, {"text": "maybe", "min_reward": 0.0}, {"phase": "train"}])
@pytest.mark.parametrize("sort", ["committed", "reward"])
@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("offset", [0, 1, 50])
def test_a_page_has_the_rows_and_the_count_that_are_read_alone(
    run: Run, filters: EpisodeFilter, sort: SortKey, limit: int, offset: int
) -> None:
    rows = run.episodes(sort=sort, descending=True, limit=limit, offset=offset, **filters)
    page = run.page(sort=sort, descending=True, limit=limit, offset=offset, **filters)
    assert page == (rows, run.count(**filters))
    assert page[1] > 1


def test_a_page_of_a_search_looks_into_the_index_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        "agentrl.runs.episodes.condition",
        lambda connection, version, filters: asked.append(filters) or condition(connection, version, filters),
    )
    rows, count = run.page(limit=1, text="maybe")
    assert (len(rows), count, len(asked)) == (1, 3, 1)


def test_a_filter_that_is_not_known_is_refused(run: Run) -> None:
    with pytest.raises(TypeError, match="episodes cannot be filtered by colour"):
        run.count(colour="red")  # type: ignore[call-arg]


def test_episodes_are_sorted_and_paged(run: Run) -> None:
    assert keys(run, phase="train", sort="reward", descending=True) == [
        "train-0-1-2",
        "train-0-1-1",
        "train-0-1-0",
        "train-1-2-0",
        "train-2-3-1",
        "train-1-2-1",
        "train-2-3-0",
    ]
    everything = keys(run, sort="reward")
    assert [*keys(run, sort="reward", limit=4), *keys(run, sort="reward", limit=9, offset=4)] == everything
    assert keys(run, descending=True, limit=1) == ["train-2-3-1"]
    assert keys(run, group=0, phase="train", sort="seconds") == ["train-0-1-2", "train-0-1-1", "train-0-1-0"]
    assert keys(run, sort="step", limit=1, phase="train") == ["train-0-1-0"]


def test_a_row_shows_what_lists_need_and_an_episode_all_of_it(run: Run) -> None:
    (row,) = run.episodes(outcome="failed")
    assert (row.key, row.trained_step, row.version, row.reward) == (EpisodeKey("train", 1, 2, 1), 1, 0, None)
    assert (row.failure_side, row.failure_reason, row.call_count, row.sampled_tokens) == (
        "agent",
        "KeyError: 'x'",
        1,
        2,
    )
    whole = run.episode(row.key)
    assert whole == run.episode("train-1-2-1")
    assert (whole.calls, whole.tree, whole.failure) == (EPISODES[6].calls, EPISODES[6].tree, EPISODES[6].failure)


def test_episodes_are_counted_by_what_they_came_to(run: Run) -> None:
    assert run.counts("outcome") == {"failed": 1, "rejected": 1, "rewarded": 7}
    assert run.counts("phase", outcome="rewarded") == {"eval": 2, "train": 5}
    assert run.counts("side") == {"agent": 1}
    assert run.counts("step") == {1: 5}


def test_groups_come_with_all_their_episodes(run: Run) -> None:
    first, second = run.groups(step=1)
    assert (first.phase, first.ordinal, first.task, first.mean_reward) == ("train", 0, 1, 1.0)
    assert [row.key.sample for row in first.episodes] == [0, 1, 2]
    assert second.mean_reward == 0.0
    assert [group.ordinal for group in run.groups(outcome="rejected")] == [2]
    assert [len(group.episodes) for group in run.groups(outcome="rejected")] == [2]
    assert [group.ordinal for group in run.groups(phase="train", limit=1, offset=1)] == [1]


def test_a_key_that_is_none_and_an_episode_that_is_not_there_are_told_apart(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"'train-1' is not the key of an episode \(write it as"):
        run.episode("train-1")
    with pytest.raises(RunError, match=r"has no episode train-7-7-7"):
        run.episode("train-7-7-7")
    assert parse_key("eval-greedy-3-2-0") == EpisodeKey("eval-greedy", 3, 2, 0)


def test_a_search_finds_what_was_committed_a_moment_ago_and_what_was_indexed_long_ago(folder: RunFolder) -> None:
    with EpisodeStore(folder.episodes) as store:
        store.submit([make_episode(0, sample, f"early bird {sample}") for sample in range(600)]).result()
        store.submit([make_episode(1, 0, "late bird")]).result()
        run = open_run(folder.path)
        assert run.count(text="bird") == 601
        assert run.count(text="late") == 1
        assert run.count(text='"early bird" 599') == 1
    with contextlib.closing(sqlite3.connect(folder.episodes)) as connection:
        assert schema.unindexed_from(connection) == 602
    assert open_run(folder.path).count(text="bird") == 601


REQUESTS = [
    {"instructions": "heron", "input": "egret", "tools": [{"type": "function", "name": "swan"}]},
    {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "heron"}]},
            {"type": "custom_tool_call", "call_id": "1", "name": "x", "input": "egret"},
            {"type": "custom_tool_call_output", "call_id": "1", "output": "stork"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "crane"}]},
        ],
        "metadata": {"text": "swan"},
    },
    {
        "system": [{"type": "text", "text": "heron"}],
        "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "egret"}]}],
        "metadata": {"user_id": "swan"},
    },
    {"system": "heron", "messages": [{"role": "user", "content": "egret"}]},
    {"prompt": "heron, egret"},
]


@pytest.mark.parametrize("request_body", REQUESTS)
def test_a_search_reads_the_messages_of_every_protocol(folder: RunFolder, request_body: dict[str, object]) -> None:
    call = Call("call-1", None, request_body, {"role": "assistant", "content": "ibis"}, "stop", 3, 2)
    with EpisodeStore(folder.episodes) as store:
        store.submit([make_episode(0, 0, calls=(call,)), make_episode(0, 1)]).result()
        run = open_run(folder.path)
        assert [run.count(text=word) for word in ("heron", "egret", "ibis", "swan")] == [1, 1, 1, 0]


def test_a_run_that_was_killed_before_its_messages_were_indexed_is_searched_and_indexed_by_the_next_writer(
    folder: RunFolder,
) -> None:
    EpisodeStore(folder.episodes).close()
    with contextlib.closing(sqlite3.connect(folder.episodes)) as connection:
        store = EpisodeStore(folder.episodes)
        store.submit(EPISODES).result()
        store.close()
        connection.execute("DROP TABLE search")
        connection.execute(schema.SEARCH)
        connection.commit()
        assert schema.unindexed_from(connection) == 1
        assert open_run(folder.path).count(text="maybe") == 3
        EpisodeStore(folder.episodes).close()
        assert schema.unindexed_from(connection) == 10
    assert open_run(folder.path).count(text="maybe") == 3


def test_an_sqlite_without_full_text_search_finds_the_same(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SEARCH", "CREATE VIRTUAL TABLE search USING not_built_in(text)")
    with EpisodeStore(folder.episodes) as store:
        store.submit(EPISODES).result()
        run = open_run(folder.path)
        assert [run.count(text=text) for text in ("maybe", '"what is 1" maybe', "naive", "naï*", "content")] == [
            3,
            3,
            0,
            1,
            0,
        ]
    assert open_run(folder.path).count(text="maybe") == 3


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"text": "=> !"}, "holds no word"),
        ({"text": ""}, "holds no word"),
        ({"text": '"'}, "holds no word"),
        ({"min_reward": math.nan}, "min_reward is NaN"),
        ({"max_reward": math.nan}, "max_reward is NaN"),
    ],
)
def test_a_filter_that_could_not_narrow_anything_down_is_refused(
    folder: RunFolder, filters: EpisodeFilter, said: str
) -> None:
    EpisodeStore(folder.episodes).close()
    run = open_run(folder.path)
    for ask in (run.episodes, run.count, run.groups):
        with pytest.raises(ConfigError, match=said):
            ask(**filters)


def test_texts_in_parts_thoughts_and_tool_calls_are_found_and_half_characters_harm_nothing(folder: RunFolder) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "grüezi \ud83d"}]}]
    called = {"function": {"name": "calculator", "arguments": '{"expression": "12 * 34"}'}}
    answered = {"role": "assistant", "content": None, "reasoning_content": "hmm", "tool_calls": [called]}
    call = Call("call-1", None, {"messages": asked, "tools": [{"name": "unused"}]}, answered, "tool_calls", 3, 2)
    odd = Call("call-2", None, {"messages": [], "n": float("inf")}, {"content": "and so on"}, "stop", 3, 2)
    with EpisodeStore(folder.episodes) as store:
        store.submit([make_episode(0, 0, calls=(call, odd))]).result()
        run = open_run(folder.path)
        before = [run.count(text=text) for text in ("grüezi", "hmm", "calculator", '"12 34"', "so", "unused")]
    after = [run.count(text=text) for text in ("grüezi", "hmm", "calculator", '"12 34"', "so", "unused")]
    assert before == after == [1, 1, 1, 1, 1, 0]


def test_a_list_is_read_without_a_task_a_message_or_a_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    opened = schema.open_for_reading

    def traced(path: Path) -> tuple[sqlite3.Connection, int]:
        connection, version = opened(path)
        connection.set_trace_callback(statements.append)
        return connection, version

    monkeypatch.setattr("agentrl.runs.episodes.open_for_reading", traced)
    run.episodes(sort="reward", limit=2)
    run.groups(step=1, limit=1)
    run.count(outcome="failed")
    assert statements
    assert not [each for each in statements if any(word in each for word in ("calls ", "trees", "tasks", "answer"))]


def test_a_store_that_is_cut_off_is_told_in_a_sentence(folder: RunFolder) -> None:
    with EpisodeStore(folder.episodes) as store:
        store.submit([make_episode(group, 0, "x" * 5000) for group in range(50)]).result()
    whole = folder.episodes.read_bytes()
    folder.episodes.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"episodes\.sqlite is damaged: .* \(restore it from a copy\)"):
        list(open_run(folder.path).load_episodes())


def test_reading_a_run_imports_no_torch(folder: RunFolder) -> None:
    EpisodeStore(folder.episodes).close()
    code = """
        import json, sys
        from agentrl import open_run
        run = open_run(sys.argv[1])
        run.state, run.info, run.summary, run.checkpoints(), run.metrics(), run.episodes(text="x"), run.groups()
        print(json.dumps([name for name in ("torch", "transformers", "rich", "openai") if name in sys.modules]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_store_alone_can_be_read(run: Run) -> None:
    assert EpisodeReader(run.path / "episodes.sqlite").count() == 9
