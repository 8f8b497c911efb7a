"""The pages of episodes: every number on them equals what the reader of a recorded run gives."""

from __future__ import annotations

import io
import math
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient
from tests.browser import hostile
from tests.browser.agents import EveryOutcome
from tests.runs import old_stores
from tests.view.reading import Page

from agentrl import Trainer, load_config, open_run
from agentrl.errors import ConfigError
from agentrl.gateway.contract import Call
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.contract import EpisodeFilter
from agentrl.runs.folder import RunFolder
from agentrl.runs.migrations import FIRST_WITH_TABLES
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree
from agentrl.view.app import view_app
from agentrl.view.episode import FATES
from agentrl.view.group import first_difference
from agentrl.view.library import Library
from agentrl.view.pieces import Pieces
from agentrl.view.query import PAGE, EpisodeQuery
from agentrl.view.reading import text_of_part
from agentrl.view.tokens import REASONS

SMALL = (
    *("training.steps=2", "rollout.tasks_per_step=3", "rollout.group_size=4", "evaluation.tasks=3"),
    *("evaluation.every=2", "training.checkpoint_every=2", "rollout.max_tokens=24", "tasks.train.size=4"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the bundled model, trained once for all of these tests."""
    place = tmp_path_factory.mktemp("runs")
    config = load_config(None, f"run.dir={place}", "run.name=recorded", *SMALL, environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train(agent=EveryOutcome)
    return open_run(place / "recorded")


@pytest.fixture(scope="module")
def browser(run: Run) -> TestClient:
    return TestClient(view_app(Library([run.path])), base_url="http://127.0.0.1:8000")


def opened(browser: TestClient, path: str) -> Page:
    answer = browser.get(path)
    assert answer.status_code == 200, Page(answer.text).text
    return Page(answer.text)


def numbers_of(row):
    return [
        *(row.trained_step, row.reward, row.advantage, row.surprise, row.sampled_tokens, row.call_count),
        *(row.seconds, row.attempts, row.version),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"phase": "train"},
        {"phase": "train", "step": "1", "sort": "reward"},
        {"sort": "reward", "descending": "1"},
        {"sort": "surprise", "descending": "1"},
        {"outcome": "failed"},
        {"outcome": "rejected", "sort": "seconds"},
        {"side": "agent"},
        {"min_reward": "-1", "max_reward": "0.5", "sort": "tokens"},
        {"text": "number alone", "phase": "eval"},
        {"tool": "calculator"},
        {"fate": "failed"},
        {"task": "1", "group": "1"},
        {"offset": "5", "sort": "task"},
    ],
)
def test_the_table_shows_what_the_reader_gives_for_its_address(run: Run, browser: TestClient, fields):
    address = str(QueryParams(fields))
    page = opened(browser, f"/runs/recorded/episodes?{address}")
    query = EpisodeQuery.read(fields)
    rows = run.episodes(sort=query.sort, descending=query.descending, limit=PAGE, offset=query.offset, **query.filters)
    assert [row["id"] for row in page.rows] == [f"episode-{row.id}" for row in rows]
    for shown, row in zip(page.rows, rows, strict=True):
        told = numbers_of(row)
        if row.fate is None:
            told.insert(1, None)
        if row.started is None:
            told.append(None)
        assert shown["numbers"] == told
        assert str(row.key) in shown["text"]
        assert row.outcome in shown["text"]
    if rows:
        assert f"of {run.count(**query.filters):,} episode" in page.text


def test_the_run_has_every_outcome(run: Run):
    assert set(run.counts("outcome")) == {"rewarded", "rejected", "failed"}


def test_every_link_of_the_table_and_of_its_pages_opens(browser: TestClient):
    """Among them are the ready-made orders, the orders of the columns, and the episodes before and after."""
    seen: set[str] = set()
    waiting = ["/runs/recorded/episodes?phase=train&sort=reward"]
    kinds: Counter[str] = Counter()
    while waiting:
        path = waiting.pop().partition("#")[0]
        kind = re.sub(r"\d+", "N", path.partition("?")[0])
        if path in seen or kinds[kind] >= 6:
            continue
        seen.add(path)
        kinds[kind] += 1
        waiting += [
            link for link in opened(browser, path).links if re.match("/runs/recorded/(episodes|groups|tasks)", link)
        ]
    assert {"/runs/recorded/groups/train/N", "/runs/recorded/tasks/train/N"} <= kinds.keys()


def test_previous_and_next_go_through_the_table_that_led_here(run: Run, browser: TestClient):
    rows = run.episodes(sort="reward", phase="train")
    page = opened(browser, "/runs/recorded/episodes?phase=train&sort=reward")
    path = page.rows[0]["links"][0]
    for row in rows[:5]:
        page = opened(browser, path)
        assert f"Episode {row.key}" in page.text
        path = next(link for link in page.links if f"/episodes/{rows[rows.index(row) + 1].key}?" in link)


def trained_rows(run: Run):
    return run.episodes(phase="train", outcome="rewarded")


def test_every_token_is_shown_with_what_the_reader_knows_of_it(run: Run, browser: TestClient):
    for row in (*trained_rows(run)[:3], *run.episodes(phase="eval", limit=1)):
        tree, trained = run.episode(row.key).tree, run.trained(row.key)
        told, sampled = [], 0
        for span in tree.spans:
            for offset, id in enumerate(span.ids):
                values = [id]
                if span.sampled is not None:
                    logprob = span.sampled.logprobs[offset]
                    values += [logprob, math.exp(logprob), span.sampled.versions[offset]]
                    columns = ("advantages", "weights", "logprobs", "entropies", "importances")
                    values += [None if trained is None else getattr(trained, each)[sampled] for each in columns]
                    values = [None if value is None or math.isnan(value) else value for value in values]
                    if span.sampled.alternatives:
                        values += [math.exp(other) for _, other in span.sampled.alternatives[offset]]
                    sampled += 1
                told.append(values)
        shown = []
        for start in range(0, len(tree), 400):
            page = opened(browser, f"/runs/recorded/episodes/{row.key}?view=tokens&from={start}")
            shown += [[int(each["cells"][1]), *each["numbers"]] for each in page.rows]
        assert shown == told
        assert sum(len(values) > 1 for values in shown) == row.sampled_tokens


def test_tokens_have_their_texts_and_their_fates_in_words(run: Run, browser: TestClient):
    """Of a trained episode, and of one that the agent rejected, whose tokens are left out."""
    for row in (trained_rows(run)[0], run.episodes(phase="train", outcome="rejected")[0]):
        trained = run.trained(row.key)
        assert trained is not None
        page = opened(browser, f"/runs/recorded/episodes/{row.key}?view=tokens&from=0")
        assert page.rows[0]["cells"][2].strip() == "<|im_start|>"
        told = [each["cells"][6].strip() for each in page.rows if "never trained" not in each["text"]]
        assert told == [REASONS[fate] for fate in trained.fates[: len(told)]]
        assert told


def test_what_became_of_an_episode_is_told_in_words(run: Run, browser: TestClient):
    rows = {row.fate: row for row in run.episodes(phase="train")}
    assert len(rows) > 1
    for fate, row in rows.items():
        assert fate is not None
        assert FATES[fate] in opened(browser, f"/runs/recorded/episodes/{row.key}?view=timeline").text


@pytest.mark.parametrize(
    ("colour", "kind"), [("logprob", "p"), ("advantage", "[pg]"), ("entropy", "p"), ("version", "v"), ("fate", "fate-")]
)
def test_tokens_are_coloured_by_any_of_their_values(run: Run, browser: TestClient, colour: str, kind: str):
    row = next(row for row in trained_rows(run) if row.advantage)
    text = browser.get(f"/runs/recorded/episodes/{row.key}?view=tokens&colour={colour}").text
    assert re.search(f'<a class="t sampled {kind}', text)


def test_the_conversation_has_every_message_once(run: Run, browser: TestClient):
    row = next(row for row in trained_rows(run) if row.call_count > 1)
    episode = run.episode(row.key)
    page = opened(browser, f"/runs/recorded/episodes/{row.key}")
    assert page.text.count("Answer with a number alone.") == 1
    assert "branch 1 of 2 after message 1".capitalize() in page.text
    answered = [each for each in page.rows if "call " in each["text"]]
    assert sum(each["numbers"][0] for each in answered) == sum(call.completion_tokens for call in episode.calls)
    assert set(episode.reward_parts) == {"first", "second"}
    facts = page.numbers
    for value in (row.reward, row.surprise, row.seconds, *episode.reward_parts.values()):
        assert value in facts


def test_an_excluded_episode_says_why(run: Run, browser: TestClient):
    failed = run.episodes(outcome="failed", limit=1)[0]
    page = opened(browser, f"/runs/recorded/episodes/{failed.key}")
    assert f"It failed on the side of the {failed.failure_side}" in page.text
    assert "the <b>table</b> of answers is not there" in page.text


def test_the_timeline_tells_the_times_of_the_calls(run: Run, browser: TestClient):
    row = trained_rows(run)[0]
    episode = run.episode(row.key)
    page = opened(browser, f"/runs/recorded/episodes/{row.key}?view=timeline")
    for shown, call in zip(page.rows, episode.calls, strict=True):
        assert shown["numbers"][:5] == [
            *(call.started, call.waited, call.seconds, call.prompt_tokens, call.completion_tokens)
        ]


def test_a_group_shows_its_members_side_by_side(run: Run, browser: TestClient):
    group = run.groups(phase="train", limit=1)[0]
    page = opened(browser, f"/runs/recorded/groups/train/{group.ordinal}")
    for shown, row in zip(page.rows, group.episodes, strict=True):
        told = [row.reward, row.advantage, row.sampled_tokens, row.call_count, row.surprise, row.seconds]
        if row.fate is None:
            told.insert(2, None)
        assert shown["numbers"] == told
    assert group.mean_reward in page.numbers
    assert "then they differ" in page.text


def test_the_first_difference_is_where_any_member_differs_and_each_is_marked_where_it_is_like_no_other():
    found = first_difference([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6], [1, 2]], Pieces(None))
    assert found is not None
    assert found.place == 2
    told = [(side.before, side.token, side.between, side.alone, side.after) for side in found.sides]
    assert told == [
        ("1 2", "3", "", "4", ""),
        ("1 2", "5", "", "", ""),
        ("1 2", "3", "", "6", ""),
        ("1 2", "", "", "", ""),
    ]
    assert first_difference([[1, 2], [1, 2]], Pieces(None)) is None
    assert first_difference([[1, 2]], Pieces(None)) is None
    assert first_difference([], Pieces(None)) is None


def test_a_task_tells_how_its_success_went(run: Run, browser: TestClient):
    row = run.episodes(phase="train", limit=1)[0]
    rows = run.episodes(phase="train", task=row.key.task)
    page = opened(browser, f"/runs/recorded/tasks/train/{row.key.task}")
    steps = sorted({each.trained_step for each in rows if each.trained_step is not None})
    for shown, step in zip(page.rows, steps, strict=False):
        those = [each for each in rows if each.trained_step == step]
        rewards = [each.reward for each in those if each.reward is not None]
        assert shown["numbers"][0] == len(those)
        if rewards:
            assert shown["numbers"][1] == pytest.approx(sum(rewards) / len(rewards))
            assert shown["numbers"][2:4] == [min(rewards), max(rewards)]
        assert shown["numbers"][4] == sum(each.outcome == "failed" for each in those)


def test_a_page_that_has_not_changed_is_not_made_again(run: Run, browser: TestClient):
    key = trained_rows(run)[0].key
    for path in ("episodes", f"episodes/{key}", f"groups/train/{key.group}", f"tasks/train/{key.task}"):
        tag = browser.get(f"/runs/recorded/{path}").headers["etag"]
        assert browser.get(f"/runs/recorded/{path}", headers={"if-none-match": tag}).status_code == 304


def test_the_form_has_a_field_for_every_filter(browser: TestClient):
    fields = re.findall(r'<(?:input|select) name="(\w+)"', browser.get("/runs/recorded/episodes").text)
    assert set(EpisodeFilter.__annotations__) <= set(fields)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("episodes?step=x", "step='x' is no whole number"),
        ("episodes?outcome=rewardd", "did you mean 'rewarded'?"),
        ("episodes?sort=rewards", "did you mean 'reward'?"),
        ("episodes?sort=reward&descending=yes", "descending='yes' is unknown"),
        (f"episodes?task={2**70}", "is no whole number"),
        ("episodes?min_reward=high", "is no number"),
        ("episodes?min_reward=nan", "is no number"),
        ("episodes?text=%3D%3D%3E", "holds no word to search for"),
        ("episodes?min_rewards=1", "did you mean 'min_reward'"),
        ("episodes/{key}?min_rewards=1", "did you mean 'min_reward'"),
        ("episodes/{key}?view=token", "did you mean 'tokens'?"),
        ("episodes/{key}?view=tokens&colour=blue", "colour='blue' is unknown"),
        ("episodes/{key}?view=tokens&from=x", "is no whole number"),
        ("episodes/{key}?from=x", "is no whole number"),
        ("episodes/{key}?at=x", "is no whole number"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_in_a_sentence(run: Run, browser: TestClient, path: str, said: str):
    answer = browser.get(f"/runs/recorded/{path.replace('{key}', str(trained_rows(run)[0].key))}")
    assert answer.status_code == 400
    assert said in Page(answer.text).text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("episodes/nothing", "is not the key of an episode"),
        (f"episodes/train-{'9' * 5000}-0-0", "is not the key of an episode"),
        ("episodes/train-99999-0-0", "has no episode train-99999-0-0"),
        ("episodes/train-99999-0-0/part?part=task", "has no episode train-99999-0-0"),
        ("groups/train/99999", "has no group 99999"),
        ("groups/trainn/1", "did you mean 'train'?"),
        ("tasks/eval/99999", "has no episode of task 99999"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(browser: TestClient, path, said):
    answer = browser.get(f"/runs/recorded/{path}")
    assert answer.status_code == 404
    assert said in Page(answer.text).text


def test_a_run_without_its_model_shows_ids(run: Run, browser: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agentrl.view.pieces._tokenizer_file", lambda run: None)
    row = trained_rows(run)[0]
    page = opened(browser, f"/runs/recorded/episodes/{row.key}?view=tokens&from=0")
    assert "The tokens are shown by their ids" in page.text
    assert len(page.rows) == min(400, len(run.episode(row.key).tree))


def test_an_episode_that_is_committed_appears_when_the_page_is_asked_for_again(tmp_path: Path):
    folder = RunFolder.create(load_config(None, f"run.dir={tmp_path}", "run.name=live", environ={}))
    browser = TestClient(view_app(Library([folder.path])), base_url="http://127.0.0.1:8000")
    with EpisodeStore(folder.episodes) as store:
        empty = browser.get("/runs/live/episodes")
        assert "No episode has finished yet" in empty.text
        for sample in (0, 1):
            episode = Episode(EpisodeKey("train", 0, 0, sample), {}, "rewarded", 0.5)
            store.submit([episode]).result()
            fresh = browser.get("/runs/live/episodes", headers={"if-none-match": empty.headers["etag"]})
            assert fresh.status_code == 200
            assert len(Page(fresh.text).rows) == sample + 1
            empty = fresh
        assert "The model was not called" in opened(browser, "/runs/live/episodes/train-0-0-1").text
        for view in ("tokens", "tree", "timeline"):
            opened(browser, f"/runs/live/episodes/train-0-0-0?view={view}")
        assert "do not differ" in opened(browser, "/runs/live/groups/train/0").text


@pytest.mark.parametrize("damage", ["none", "cut", "other", "newer"])
def test_a_store_that_cannot_be_read_is_said_in_a_sentence(tmp_path: Path, damage: str):
    folder = RunFolder.create(load_config(None, f"run.dir={tmp_path}", "run.name=broken", environ={}))
    if damage != "none":
        with EpisodeStore(folder.episodes) as store:
            store.submit(
                [Episode(EpisodeKey("train", 0, 0, each), {}, "rewarded", 0.5) for each in range(200)]
            ).result()
        content = folder.episodes.read_bytes()
        damaged = {"cut": content[: len(content) // 3], "other": b"no database" * 500, "newer": content}[damage]
        folder.episodes.write_bytes(damaged)
        if damage == "newer":
            with closing(sqlite3.connect(folder.episodes)) as connection:
                connection.execute("PRAGMA user_version = 1000")
    browser = TestClient(view_app(Library([folder.path])), base_url="http://127.0.0.1:8000")
    said = {
        "none": "no episode store",
        "cut": "episodes.sqlite",
        "other": "is not an episode store",
        "newer": "has schema 1000",
    }
    for path in ("episodes", "episodes/train-0-0-0", "groups/train/0", "tasks/train/0"):
        answer = browser.get(f"/runs/broken/{path}")
        assert answer.status_code == 503
        assert said[damage] in Page(answer.text).text


@pytest.mark.parametrize("schema", [2, 7])
def test_a_store_of_an_older_version_is_shown_as_far_as_it_goes(tmp_path: Path, schema: int):
    folder = RunFolder.create(load_config(None, f"run.dir={tmp_path}", "run.name=old", environ={}))
    tree = TokenTree()
    tree.add_sampled((1, 2), Sampled("one", (-0.5, -0.25), (0, 0), 1.0), tree.add_given([3, 4]))
    call = Call("one", None, {"messages": [{"role": "user", "content": "1 + 1?"}]}, {"content": "2"}, "stop", 2, 2)
    episode = Episode(EpisodeKey("train", 0, 0, 0), {"question": "1 + 1?"}, "rewarded", 0.5, calls=(call,), tree=tree)
    if schema < FIRST_WITH_TABLES:
        old_stores.write(folder.episodes, schema, [(1, episode)])
    else:
        old_stores.write_without_later_columns(folder.episodes, schema, [episode])
    browser = TestClient(view_app(Library([folder.path])), base_url="http://127.0.0.1:8000")
    page = opened(browser, "/runs/old/episodes")
    assert page.rows
    key = Run(folder.path).episodes(limit=1)[0].key
    for view in ("conversation", "tokens", "tree", "timeline"):
        opened(browser, f"/runs/old/episodes/{key}?view={view}")
    opened(browser, f"/runs/old/groups/{key.phase}/{key.group}")
    opened(browser, f"/runs/old/tasks/{key.phase}/{key.task}")


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["train", "eval", "eval-greedy"]),
        "step": st.integers(-(2**63), 2**63 - 1).map(str),
        "outcome": st.sampled_from(["rewarded", "rejected", "failed"]),
        "min_reward": st.floats(allow_nan=False).map(str),
        "text": st.text(st.characters(exclude_categories=["Cs"])).map("word {}".format),
        "tool": st.text(st.characters(exclude_categories=["Cs"])),
        "sort": st.sampled_from(["committed", "reward", "surprise", "phase"]),
        "descending": st.sampled_from(["0", "1"]),
        "offset": st.integers(0, 1000).map(str),
    },
)


@settings(max_examples=60)
@given(FIELDS)
def test_an_address_says_the_same_when_it_is_read_again(fields):
    query = EpisodeQuery.read(fields)
    assert EpisodeQuery.read(QueryParams(query.address().removeprefix("?"))) == query


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, TestClient]:
    """The pages of a run whose texts do what they can to break them."""
    from tokenizers import Tokenizer

    model = find_model(Plugins(), load_config(None, environ={}).model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    path = hostile.write_run(tmp_path_factory.mktemp("hostile"), lambda text: tokenizer.encode(text).ids)
    return Run(path), TestClient(view_app(Library([path])), base_url="http://127.0.0.1:8000")


def place_of(browser: TestClient) -> str:
    return next(link for link in opened(browser, "/").links if link.startswith("/runs/"))


def test_hostile_conversations_are_shown_and_nothing_of_them_runs(broken):
    _, browser = broken
    place = place_of(browser)
    for name in [*hostile.TEXTS, "tokens"]:
        text = browser.get(f"{place}/episodes/{hostile.key(name)}").text
        page = Page(text)
        assert hostile.word(name) in page.text, name
        assert len(text) < 500_000, name
        rest = [link for link in page.links if "/part?" in link]
        opened(browser, rest[-1])  # Every episode calls a tool with arguments that are nested 5,000 deep.


@pytest.mark.parametrize("view", ["tokens", "tree", "timeline"])
def test_hostile_tokens_are_shown_and_nothing_of_them_runs(broken, view):
    _, browser = broken
    place = place_of(browser)
    for name in ["script", "latex", "controls", "right to left", "halves", "invisible", "tokens"]:
        page = opened(browser, f"{place}/episodes/{hostile.key(name)}?view={view}")
        assert len(page.rows) in range(1, 501)


def test_the_last_of_100_000_tokens_is_reached_and_no_page_holds_them_all(broken):
    run, browser = broken
    key = hostile.key("tokens")
    place = place_of(browser)
    last = len(run.episode(key).tree) - 1
    page = opened(browser, f"{place}/episodes/{key}?view=tokens&from={last - 10}")
    assert [row["id"] for row in page.rows][-1] == f"t{last}"
    assert len(page.rows) == 11
    with pytest.raises(ConfigError, match="has no part"):
        text_of_part(run.episode(key), "9.text")


def test_hostile_groups_tasks_and_tables_are_shown_and_nothing_of_them_runs(broken):
    _, browser = broken
    place = place_of(browser)
    for ordinal in range((len(hostile.TEXTS) + 4) // 4):
        opened(browser, f"{place}/groups/train/{ordinal}")
        opened(browser, f"{place}/tasks/train/{ordinal}")
    opened(browser, f"{place}/episodes")
    opened(browser, f"{place}/episodes?text=%3Cscript%3E&tool=%22%3E%3Cscript%3E")
