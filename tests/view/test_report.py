"""A report is one file that shows a run and some of its episodes, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agentrl.cli.root import App, root
from agentrl.config import load_config
from agentrl.errors import AgentRLError
from agentrl.gateway.contract import Call
from agentrl.rollout.contract import Episode, EpisodeKey, Failure
from agentrl.runs.folder import RunFolder
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.reader import Run
from agentrl.runs.store import EpisodeStore
from agentrl.tokens.contract import Sampled, TokenTree
from agentrl.view.report import interesting, named, report

HOSTILE = (
    "</script><script>alert(1)</script><img src=http://example.com/x onerror=alert(1)> ![x](http://example.com/y) "
    "\x1b[31m \u202e <!-- <style>@import 'http://example.com/z'</style>"
)
METRIC = "reward/parts/</script><script>alert(2)</script>"


def episode(group: int, reward: float | None, logprob: float, text: str = "It is 42.") -> Episode:
    tree = TokenTree()
    tree.add_sampled([5], Sampled("c", (logprob,), (0,), 1.0), tree.add_given([1, 2]))
    tool = {"id": "t", "type": "function", "function": {"name": text, "arguments": text}}
    message = {"role": "assistant", "content": text, "reasoning_content": text, "tool_calls": [tool]}
    call = Call("c", None, {"messages": [{"role": "user", "content": text}]}, message, "stop", 2, 1)
    failure = Failure("agent", text) if reward is None else None
    outcome = "failed" if reward is None else "rewarded"
    key = EpisodeKey("train", group, 0, 0)
    return Episode(key, {"q": text}, outcome, reward, calls=(call,), tree=tree, failure=failure, mistake=text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps, and twelve episodes: better and better, the seventh the most surprising, the last one failed."""
    place = tmp_path_factory.mktemp("report") / "runs"
    folder = RunFolder.create(load_config(None, f"run.dir={place}", "run.name=sent", environ={}))
    with EpisodeStore(folder.episodes) as store:
        store.submit([episode(n, n / 10, -5.0 if n == 6 else -0.1) for n in range(11)]).result()
        store.submit([episode(11, None, -0.2, HOSTILE)]).result()
    with MetricsLog(folder.metrics) as log:
        log.append(1, {"reward/mean": 0.25, "seconds/step": 1.0, METRIC: 1.0})
        log.append(2, {"reward/mean": 0.75, "seconds/step": 1.0, METRIC: 2.0})
    return Run(folder.path)


class Page(HTMLParser):
    """The elements of a document, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if ("http-equiv", "Content-Security-Policy") in attributes:
            self.policy = dict(attributes)["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def test_nothing_is_loaded_and_only_its_own_scripts_run(run: Run) -> None:
    page = Page(report(run, named(run, ["train-11-0-0"])))
    loading = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "poster", "background", "style") or name.startswith("on")
    ]
    assert [each for each in loading if each[0] != "a"] == [("link", "href", "data:,")]
    assert "default-src 'none'" in page.policy
    assert len(page.scripts) == 4
    _, *scripts = page.scripts
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert page.policy.partition("script-src ")[2].partition(";")[0].split() == [f"'sha256-{each}'" for each in digests]
    assert "Plotly" in scripts[0]
    assert "alert(1)" not in "".join(scripts)


def test_the_numbers_of_the_curves_are_those_that_the_reader_gives(run: Run) -> None:
    numbers = json.loads(Page(report(run, [])).scripts[0])
    steps = run.steps()
    assert numbers["step"] == [line.step for line in steps]
    assert numbers["metrics"] == {name: [line.metrics[name] for line in steps] for name in steps[0].metrics}


def test_text_of_models_is_shown_and_is_no_html(run: Run) -> None:
    text = report(run, named(run, ["train-11-0-0"]))
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    tags = {tag for tag, _ in Page(text).elements}
    assert not tags & {"img", "iframe", "object", "embed", "form", "base"} - {"form"}
    assert sum(tag == "style" for tag, _ in Page(text).elements) == 1


def test_the_best_the_worst_and_the_most_surprising_are_chosen_each_once(run: Run) -> None:
    chosen = {chapter.title: [row.key.group for row in chapter.rows] for chapter in interesting(run)}
    assert chosen == {"The best": [10, 9, 8], "The worst": [0, 1, 2], "The most surprising": [6, 11, 3]}


def test_the_command_writes_the_episodes_that_are_chosen(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(name: str, *arguments: str) -> list[str]:
        file = tmp_path / name
        root.main(["view", str(run.path), "--export", str(file), *arguments], standalone_mode=False, obj=App())
        elements = Page(file.read_text(encoding="utf-8")).elements
        return [str(each["id"]) for tag, each in elements if tag == "details" and each.get("class") == "episode"]

    assert exported("a.html", "--episodes", "train-3-0-0,train-1-0-0") == ["train-3-0-0", "train-1-0-0"]
    assert exported("b.html", "--outcome", "failed") == ["train-11-0-0"]
    assert exported("c.html", "--sort", "reward", "--descending", "--limit", "2") == ["train-10-0-0", "train-9-0-0"]
    assert len(exported("d.html")) == 9
    assert "d.html: sent with 9 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--outcome", "failed"), "--outcome has no effect without --export"),
        (("--episodes", "train-1-0-0"), "--episodes has no effect without --export"),
        (("--export", "new.html", "--episodes", "train-900-0-0"), "train-900-0-0"),
        (("--export", "there.html"), "there.html exists already"),
        (
            ("--export", "new.html", "--episodes", "train-1-0-0", "--step", "2"),
            "--step has no effect beside --episodes",
        ),
        (("--export", "new.html", "--episodes", "train-1-0-0", "--limit", "2"), "--limit has no effect beside"),
        (("--export", "new.html", "--episodes", "train-1-0-0", "--sort", "reward"), "--sort has no effect beside"),
        (("--export", "new.html", "--episodes", " , "), "names no episode"),
        (("--export", "new.html", "--limit", "2"), "--limit has no effect without a filter"),
        (("--export", "new.html", "--descending"), "--descending has no effect without a filter"),
        (("--export", "new.html", "--host", "127.0.0.1"), "--host has no effect beside --export"),
        (("--export", "new.html", "--port", "0"), "--port has no effect beside --export"),
        (("--export", "new.html", "--token", "auto"), "--token has no effect beside --export"),
        (("--export", "new.html", "--open"), "--open has no effect beside --export"),
        (("--export", "nowhere/new.html"), "name a file in a folder"),
        (("--limit", "20"), "--limit has no effect without --export"),
        (("--sort", "committed"), "--sort has no effect without --export"),
        (("--descending",), "--descending has no effect without --export"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("")
    with pytest.raises(AgentRLError, match=message):
        root.main(["view", str(run.path), *arguments], standalone_mode=False, obj=App())
    assert not Path("new.html").exists()
