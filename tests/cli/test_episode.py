"""``agentrl episode``: one episode as a person reads it, and all of it for programs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from agentrl.cli import VARIABLE
from agentrl.cli.completion import _Fish as Shell
from agentrl.cli.root import App, root
from agentrl.config import load_config
from agentrl.errors import AgentRLError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.contract import Membership, TrainedEpisode, TrainedTokens
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def run(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(recorded.path.parent.parent)
    return recorded


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    root.main(["episode", *arguments], standalone_mode=False, obj=App())
    captured = capsys.readouterr()
    return captured.out, captured.err


def stored(folder: Path, episode: Episode, trained: TrainedTokens | None = None) -> str:
    """A run with ``episode``, which its first step trained where ``trained`` says how, by its folder."""
    made = RunFolder.create(load_config(None, f"run.dir={folder}", "run.name=made", environ={}))
    with EpisodeStore(made.episodes) as store:
        store.submit([episode]).result()
        if trained is not None:
            store.begin_step(Membership(1, (episode.key.group,)), [episode.key]).result()
            store.record_training(1, [TrainedEpisode(episode.key, "trained", trained)]).result()
    return str(made.path)


def test_it_says_what_was_said_and_what_came_of_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    row = run.episodes(phase="train", sort="calls", descending=True, limit=1)[0]
    episode = run.episode(row.key)
    out, err = told(capsys, str(row.key))
    assert err == ""
    assert out.startswith(f"{row.key} of first: reward {row.reward:.3f}; {row.call_count} call")
    assert f"policy version {row.version}, step {row.trained_step}" in out
    assert f"surprise {row.surprise:.3f} nats a token" in out
    assert f"    {episode.data['question']}\n" in out
    assert out.count("\nassistant, call ") == row.call_count
    assert out.count("\nsystem\n") == 1
    assert told(capsys, f"first/{row.key}") == told(capsys, str(row.key), "--run", str(run.path)) == (out, err)


def test_tokens_are_those_of_the_store_with_what_the_learner_made_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = TrainedTokens(
        *(1, ("stale", "trained", "trained"), (math.nan, 0.5, 0.25), (0.0, 0.5, 0.5)),
        *((-0.5, -1.0, -2.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    )
    run, key = stored(tmp_path, branching(), trained=trained), branching().key
    out, _ = told(capsys, f"{run}/{key}", "--tokens")
    assert f"{key} of made: reward 1.000; 2 calls, 3 tokens" in out
    assert "step 1, fate trained, mean advantage +0.375, surprise 1.167 nats a token" in out
    rows = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d+ +", line)]
    assert [[row[1], *row[-4 if row[-1] == "trained" else -3 :]] for row in rows] == [
        ["5", "-0.5000", "3", "stale"],
        ["6", "-1.0000", "4", "+0.5000", "trained"],
        ["7", "-2.0000", "4", "+0.2500", "trained"],
    ]
    document = json.loads(told(capsys, f"{run}/{key}", "--json")[0])
    assert document["trained"]["fates"] == ["stale", "trained", "trained"]
    assert document["trained"]["advantages"] == [None, 0.5, 0.25]


def branching() -> Episode:
    """An episode of two calls, of two tokens and of one."""
    tree = TokenTree()
    start = tree.add_given([1, 2])
    tree.add_sampled([5, 6], Sampled("a", (-0.5, -1.0), (3, 4), 1.0), start)
    tree.add_sampled([7], Sampled("b", (-2.0,), (4,), 1.0), start)
    request = {"messages": [{"role": "user", "content": "question"}]}
    calls = tuple(
        Call(name, None, request, {"role": "assistant", "content": f"said {name}"}, "stop", 2, tokens)
        for name, tokens in (("a", 2), ("b", 1))
    )
    return Episode(EpisodeKey("train", 4, 2, 0), {}, "rewarded", 1.0, calls=calls, tree=tree)


def test_json_holds_all_that_the_reader_gives(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    row = run.episodes(phase="train", limit=1)[0]
    episode = run.episode(row.key)
    document = json.loads(told(capsys, str(row.key), "--json")[0])
    assert document["key"] == str(row.key)
    assert document["reward"] == row.reward
    assert document["task_data"] == episode.data
    assert TokenTree.from_json(document["tree"]) == episode.tree
    assert [call["message"] for call in document["calls"]] == [call.message for call in episode.calls]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-12",), "'train-12' is not the key of an episode"),
        (("train-900-0-0",), r"has no episode train-900-0-0 \(the groups of train go from "),
        (("eval-greedy-0-900-0",), r"\(group 0 of eval-greedy has eval-greedy-0-0-0"),
        (("nowhere/train-0-0-0",), "there is no run 'nowhere'"),
        (("first/train-0-0-0", "--run", "first"), "both name a run"),
    ],
)
def test_a_key_that_is_none_is_told_what_there_is(run: Run, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(AgentRLError, match=message):
        root.main(["episode", *arguments], standalone_mode=False, obj=App())


HOSTILE = (
    "red \x1b[31m bell \x07 title \x1b]0;owned\x07 eight-bit \x9b31m right \u202eto left\r\nnext\rover \ud83d half"
)


def test_no_control_character_of_a_model_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = TokenTree()
    tree.add_sampled([5, 6], Sampled("a", (-0.5, -1.0), (0, 0), 1.0), tree.add_given([1, 2]))
    tool = {"id": "t", "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}}
    first = Call(
        id="a",
        parent=None,
        request={"messages": [{"role": "user", "content": HOSTILE}]},
        message={"role": "assistant", "content": HOSTILE, "reasoning_content": HOSTILE, "tool_calls": [tool]},
        finish_reason="stop",
        prompt_tokens=2,
        completion_tokens=2,
    )
    key = EpisodeKey("train", 0, 0, 0)
    failure = Failure("agent", HOSTILE)
    told_of = Episode(
        key, {"q": HOSTILE}, "failed", None, calls=(first,), tree=tree, failure=failure, mistake="\x1b[2J"
    )
    run = stored(tmp_path, told_of)
    for arguments in ((f"{run}/{key}",), (f"{run}/{key}", "--tokens"), (f"{run}/{key}", "--json")):
        out, err = told(capsys, *arguments)
        assert "owned" in out
        assert CONTROL.findall(out + err) == []
    root.main(["episodes", run, "--limit", "0"], standalone_mode=False, obj=App())
    listed = capsys.readouterr().out
    assert "owned" in listed
    assert CONTROL.findall(listed) == []


def test_branches_of_a_conversation_are_told_apart_and_repeat_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(name: str, parent: str | None, *messages: tuple[str, str]) -> Call:
        request = {"messages": [{"role": role, "content": text} for role, text in messages]}
        return Call(name, parent, request, {"role": "assistant", "content": f"said {name}"}, "stop", 1, 1)

    begun = (("user", "question"),)
    calls = (
        call("a", None, *begun),
        call("b", "a", *begun, ("assistant", "said a"), ("user", "and then")),
        call("c", "a", *begun, ("assistant", "said a"), ("user", "or else")),
        call("d", None, ("user", "apart")),
    )
    episode = Episode(EpisodeKey("train", 0, 0, 0), {}, "rewarded", 1.0, calls=calls)
    out, _ = told(capsys, f"{stored(tmp_path, episode)}/train-0-0-0")
    body = [line.strip() for line in out.splitlines() if line.startswith(("    ", "──"))]
    assert body == [
        *("question", "said a", "and then", "said b"),
        *("── call 3 goes on from call 1 ──", "or else", "said c"),
        *("── call 4 begins a conversation ──", "apart", "said d"),
    ]


def test_a_shell_completes_keys_and_tools_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"agentrl {line}")
        monkeypatch.setenv("AGENTRL_DEBUG", "1")
        return Shell(root, {"obj": App()}, "agentrl", VARIABLE).complete().splitlines()

    group = run.episodes(phase="train", limit=1)[0].key.group
    members = {str(row.key) for row in run.episodes(phase="train", group=group)}
    assert set(completed(f"episode train-{group}-")) == members
    assert set(completed(f"episode first/train-{group}-")) == {f"first/{key}" for key in members}
    assert set(completed(f"episode --run first train-{group}-")) == members
    assert completed("episode fir") == ["first/"]
    assert completed("episodes fir") == ["first"]
    assert completed("episodes first --tool ") == list(map(str, run.counts("tool")))
    assert completed("episodes --sort surp") == ["surprise"]
