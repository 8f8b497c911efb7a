"""``agentrl episodes``: which episodes a run has, by filter and order, for people and for programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentrl.cli.episodes import as_json_row
from agentrl.cli.root import root
from agentrl.cli.selection import _OPTIONS
from agentrl.errors import ConfigError
from agentrl.runs.contract import EpisodeFilter
from agentrl.runs.reader import Run


@pytest.fixture
def run(recorded: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The recorded run, with its folder of runs as ``runs`` here."""
    monkeypatch.chdir(recorded.path.parent.parent)
    return recorded


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    root.main(["episodes", *arguments], standalone_mode=False)
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def test_the_newest_run_is_listed_where_none_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines, err = told(capsys, "--limit", "3")
    assert lines[0].split()[0] == "key"
    assert [line.split()[0] for line in lines[1:]] == [str(row.key) for row in run.episodes(limit=3)]
    assert err == f"3 of {run.count()} episodes; --limit 0 shows all\n"
    assert told(capsys, "first", "--limit", "3") == told(capsys, str(run.path), "--limit", "3") == (lines, err)


def test_json_is_a_line_for_each_episode_that_the_reader_gives(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines, err = told(capsys, "first", "--json")
    assert [json.loads(line) for line in lines] == [as_json_row(row) for row in run.episodes()]
    assert err == ""
    assert json.loads(lines[0])["key"] == str(run.episodes()[0].key)


def test_filters_and_sorts_are_those_of_the_reader(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = told(capsys, "--phase", "train", "--step", "2", "--sort", "tokens", "--descending", "--json")
    wanted = run.episodes(phase="train", step=2, sort="tokens", descending=True)
    assert len(wanted) == 8
    assert [json.loads(line)["key"] for line in lines] == [str(row.key) for row in wanted]
    assert {name: kind for name, (kind, _, _) in _OPTIONS.items()}.keys() >= EpisodeFilter.__annotations__.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "9"), r"has step 9 \(they have 1 to 2\)"),
        (("--group", "900"), r"has group 900 \(they have 0 to "),
        (("nowhere",), "there is no run 'nowhere'.*known: first"),
        (("firts",), "did you mean 'first'"),
    ],
)
def test_what_no_episode_has_is_an_error_that_says_what_they_have(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        root.main(["episodes", *arguments], standalone_mode=False)


def test_a_word_that_is_no_choice_is_told_what_is_near_it(run: Run) -> None:
    with pytest.raises(Exception, match="'trian' is none of the choices: did you mean 'train'"):
        root.main(["episodes", "--phase", "trian"], standalone_mode=False)


def test_filters_that_match_nothing_together_are_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--phase", "train", "--min-reward", "7") == (
        [],
        "no episode of first matches: phase=train, min_reward=7.0\n",
    )


@pytest.mark.parametrize("width", [24, 60, 200])
def test_the_table_fits_the_terminal(
    run: Run, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((width, 24)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines, _ = told(capsys, "--sort", "reward", "--descending")
    assert max(map(len, lines)) <= width
    assert lines[0].split()[0] == "key"
    assert ("reward" in lines[0]) == (width > 24)


def test_a_run_without_episodes_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from agentrl.config import load_config
    from agentrl.runs.folder import RunFolder
    from agentrl.runs.store import EpisodeStore

    folder = RunFolder.create(load_config(None, f"run.dir={tmp_path}", "run.name=new", environ={}))
    EpisodeStore(folder.episodes).close()
    assert told(capsys, str(folder.path)) == ([], "the run new has no episodes yet\n")
