"""``agentrl export-episodes``: conversations that ``agentrl sft`` takes back, and traces."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.reporting.tracked import TOOL, episode

from agentrl import Trainer, load_config
from agentrl.cli.root import App, root
from agentrl.errors import ConfigError, RunError
from agentrl.gateway.contract import Call
from agentrl.reporting.plain import PlainReporter
from agentrl.rollout.contract import Episode, EpisodeKey
from agentrl.runs.folder import RunFolder
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.selection import load_renderer
from agentrl.training.dialogues import read_dialogues
from agentrl.training.examples import example_of_dialogue


@pytest.fixture
def run(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(recorded.path.parent.parent)
    return recorded


def export(*arguments: object) -> None:
    root.main(["export-episodes", *map(str, arguments)], standalone_mode=False, obj=App())


def stored(folder: Path, *episodes: Episode) -> Path:
    """A run with ``episodes``, by its folder."""
    made = RunFolder.create(load_config(None, f"run.dir={folder}", "run.name=made", environ={}))
    with EpisodeStore(made.episodes) as store:
        store.submit(episodes).result()
    return made.path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_takes_back_what_a_real_run_has_said(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "chats.jsonl"
    export("first", out, "--json")
    told = json.loads(capsys.readouterr().out)
    matching = run.count(phase="train", outcome="rewarded")
    assert (told["episodes"], told["lines"], told["format"]) == (matching, len(lines(out)), "chat")
    assert told["lines"] + sum(told["left_out"].values()) >= matching
    assert {line["episode"] for line in lines(out)} <= {str(row.key) for row in run.episodes(phase="train")}
    assert len([*read_dialogues(out, "all")]) == told["lines"] > 0
    config = load_config(None, f"run.dir={tmp_path}", "run.name=taught", "training.steps=1", environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        assert trainer.sft(out).outcome == "completed"


def test_tools_turns_and_thinking_come_back_as_they_were(tmp_path: Path, tiny_folder: Path) -> None:
    made = stored(tmp_path, episode(EpisodeKey("train", 0, 2, 0)))
    export(made, tmp_path / "out.jsonl")
    (line,) = lines(tmp_path / "out.jsonl")
    assert (line["run"], line["episode"], line["reward"]) == ("made", "train-0-2-0", 1.0)
    (dialogue,) = read_dialogues(tmp_path / "out.jsonl", "all")
    assert dialogue.messages == line["messages"]
    assert (dialogue.tools, dialogue.trained) == ([TOOL], [2, 4])
    renderer = load_renderer(tiny_folder)
    example = example_of_dialogue(dialogue, renderer)
    turns = (renderer.vocabulary.decode(example.token[example.turn == turn].tolist()) for turn in (0, 1))
    second, first = sorted(turns, key=len)
    assert "<think>\nUse the tool.\n</think>" in first
    assert '"name": "add", "arguments": {"a": 2, "b": 1}' in first
    assert second.endswith("It is 3.<|im_end|>")


def test_filters_are_those_of_the_reader_and_training_is_meant_where_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [EpisodeKey("train", 0, 1, 0), EpisodeKey("train", 0, 1, 1), EpisodeKey("eval", 0, 1, 0)]
    failed = episode(EpisodeKey("train", 1, 1, 0), None)
    made = stored(tmp_path, episode(keys[0]), episode(keys[1], 0.0), episode(keys[2]), failed)
    for options, expected in {
        (): ["train-0-1-0", "train-0-1-1"],
        ("--min-reward", "0.5"): ["train-0-1-0"],
        ("--phase", "eval"): ["eval-0-1-0"],
        ("--outcome", "failed"): ["train-1-1-0"],
    }.items():
        export(made, "-", *options)
        captured = capsys.readouterr()
        assert [json.loads(line)["episode"] for line in captured.out.splitlines()] == expected
        assert captured.err == f"{len(expected)} conversations of {len(expected)} episodes: -\n"


def test_what_nothing_can_be_learned_from_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = episode(EpisodeKey("train", 0, 1, 0))
    call = Call("r", None, {"messages": [{"role": "user", "content": "?"}]}, {"content": "I"}, "length", 1, 1)
    cut = episode(EpisodeKey("train", 0, 1, 1), calls=(call,))
    export(stored(tmp_path, whole, cut), tmp_path / "out.jsonl")
    captured = capsys.readouterr()
    assert captured.out == f"1 conversations of 2 episodes: {tmp_path / 'out.jsonl'}\n"
    assert captured.err == "left out 1x: its answers were cut at their limit of tokens\n"


def test_traces_of_a_real_run_have_a_span_for_every_call_in_the_times_that_were_recorded(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "traces.jsonl"
    export("newest", out, "--format", "otel")
    assert capsys.readouterr().out == f"{run.count()} traces of {run.count()} episodes: {out}\n"
    spans = [line["resourceSpans"][0]["scopeSpans"][0]["spans"] for line in lines(out)]  # type: ignore[index]
    episodes = [*run.load_episodes()]
    for found, whole in zip(spans, episodes, strict=True):
        names = [span["name"].split()[0] for span in found]
        assert (names[0], names.count("chat")) == ("invoke_agent", len(whole.calls))
        if whole.started is not None:
            assert abs(int(found[0]["startTimeUnixNano"]) / 1e9 - whole.started) < 1e-3


def test_a_file_is_whole_or_not_there_and_never_replaced_unasked(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"exists .*--overwrite"):
        export("first", out)
    assert out.read_text() == "mine"
    export("first", out, "--overwrite")
    assert lines(out)
    with pytest.raises(RunError, match="cannot write"):
        export("first", tmp_path / "nowhere" / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("first", "-", "--json"), "--json has no effect"),
        (("first", ".", "--overwrite"), r"\. is a folder"),
        (("first", ".."), "is a folder"),
        (("first", ""), "is a folder"),
        (("frist", "out.jsonl"), "did you mean 'first'"),
        (("first", "out.jsonl", "--step", "9"), "no episode of first has step 9"),
        (("first", "out.jsonl", "--min-reward", "99"), "no episode of first matches"),
    ],
)
def test_what_cannot_be_is_an_error_with_what_is_near(run: Run, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(*arguments)
    assert not Path("out.jsonl").exists()


def test_an_unknown_format_is_told_what_is_near_it(run: Run) -> None:
    import click

    with pytest.raises(click.UsageError, match=r"'chats' is none of the choices: .*chat"):
        export("first", "out.jsonl", "--format", "chats")
