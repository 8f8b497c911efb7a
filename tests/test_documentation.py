"""What the README, the documentation and the examples show works as shown."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.snippets import CONFIG, PAGES, ROOT, Snippet, furnish, snippets
from tests.warm import WarmInterpreter

from agentrl import Config, Trainer, load_config
from agentrl.cli import main
from agentrl.reporting.meanings import source
from agentrl.reporting.plain import PlainReporter

SMALL = {
    "AGENTRL_TRAINING__STEPS": "1",
    "AGENTRL_ROLLOUT__TASKS_PER_STEP": "1",
    "AGENTRL_ROLLOUT__GROUP_SIZE": "2",
    "AGENTRL_ROLLOUT__MAX_TOKENS": "8",
    "AGENTRL_EVALUATION__TASKS": "2",
}
"""Settings under which whatever a page trains is trained within seconds."""
LAST = ["training.steps=1", "rollout.group_size=2", "rollout.max_tokens=8"]
"""The same for commands, whose own settings win over the environment."""
CHECKED_ALONE = {"make", "pip", "python3", "eval", "_AGENTRL_COMPLETE=fish_source"}
"""Commands of blocks that are not run, and are no commands of agentrl."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name, and a run called quickstart."""
    folder = tmp_path_factory.mktemp("pages")
    furnish(folder)
    keys = [f"{name.removeprefix('AGENTRL_').replace('__', '.').lower()}={value}" for name, value in SMALL.items()]
    config = load_config(CONFIG, *keys, f"run.dir={folder / 'runs'}", "run.name=quickstart", environ={})
    with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
        trainer.train()
    return folder


@pytest.fixture
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as the current one, and a small run as the default."""
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))
    for name in [name for name in os.environ if name.startswith("AGENTRL_")]:
        monkeypatch.delenv(name)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    return workspace


def of_few_steps(script: str) -> str:
    """The same script, but for the number of steps that it trains."""
    return re.sub(r"training\.steps=\d+", "training.steps=2", script)


def agentrl(arguments: list[str]) -> int:
    """The exit code of a command, run in this process."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.mark.parametrize("snippet", [each for each in snippets("console") if not each.not_run], ids=str)
def test_a_command_does_what_the_page_says(snippet: Snippet, in_workspace: Path, capsys: pytest.CaptureFixture[str]):
    assert snippet.commands
    for program, *arguments in snippet.commands:
        assert program == "agentrl", f"{program} is not run: say why, or let the test run it"
        small = LAST if arguments[0] == "train" else []
        code = agentrl([*arguments, *small])
        assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("snippet", [each for each in snippets("console") if each.not_run], ids=str)
def test_a_command_that_cannot_be_run_here_is_one_that_exists(snippet: Snippet, capsys: pytest.CaptureFixture[str]):
    for program, *arguments in snippet.commands:
        assert program == "agentrl" or program in CHECKED_ALONE
        if program == "agentrl":
            verb = arguments[: 2 if arguments[0] == "env" else 1]
            assert agentrl([*verb, "--help"]) == 0
            options = {each for each in arguments if each.startswith("--")}
            help_text = capsys.readouterr().out
            assert all(option in help_text for option in options)


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=str)
def test_a_config_is_one(snippet: Snippet, in_workspace: Path):
    path = in_workspace / "of_a_page.yaml"
    path.write_text(snippet.text, encoding="utf-8")
    config = load_config(path, environ={})
    if not snippet.not_run:
        with Trainer(config, reporter=PlainReporter(io.StringIO())) as trainer:
            trainer.check()


@pytest.mark.parametrize("snippet", snippets("python"), ids=str)
def test_a_script_runs(snippet: Snippet, in_workspace: Path):
    if snippet.not_run:
        ast.parse(snippet.text)
        return
    path = in_workspace / "of_a_page.py"
    path.write_text(of_few_steps(snippet.text), encoding="utf-8")
    runpy.run_path(str(path))


@pytest.mark.parametrize("snippet", snippets("toml"), ids=str)
def test_an_entry_point_is_of_a_known_group(snippet: Snippet):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert tomllib.loads(snippet.text)["project"]["entry-points"].keys() <= known.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_files_that_exist(page: Path):
    text = page.read_text(encoding="utf-8").replace("{{ metrics }}", source())
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_a_page_says_what_each_block_is():
    known = {"console", "python", "yaml", "toml", "text", "jinja", "sql"}
    fences = {
        (page.name, fence)
        for page in PAGES
        for fence in re.findall(r"^```(\S*)", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
    }
    assert {fence for fence in fences if fence[1] not in known} == set()


def test_every_metric_of_a_run_is_explained_and_every_explained_one_exists(workspace: Path):
    told = set(re.findall(r"`([a-z]+/[A-Za-z_/]+)`", source()))
    kinds = {re.sub(r"[A-Z]+", "[a-z_-]+", name) for name in told}
    lines = (workspace / "runs/quickstart/metrics.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line) if "/" in name}
    assert {name for name in logged if not any(re.fullmatch(kind, name) for kind in kinds)} == set()
    explained = {name for name in told if name == name.lower()}
    code = "\n".join(path.read_text() for path in (ROOT / "core/agentrl").rglob("*.py"))
    made = {name for name in explained if name in code or f'time("{name.removeprefix("seconds/")}")' in code}
    assert explained - made - logged == set()


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    (agent,) = [snippet for snippet in snippets("python") if snippet.page == "README.md" and snippet.title]
    assert len(agent.text.strip().splitlines()) <= 12


def test_the_example_script_trains_the_agent_that_it_defines(tmp_path: Path, warm: WarmInterpreter):
    script = tmp_path / "train_from_a_script.py"
    script.write_text(of_few_steps((ROOT / "examples" / script.name).read_text(encoding="utf-8")), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    environ |= {"AGENTRL_EVALUATION__TASKS": "8", "AGENTRL_ROLLOUT__TASKS_PER_STEP": "2"}
    pipe = subprocess.PIPE
    process = warm.start(cwd=tmp_path, script=script, environ=environ, stdout=pipe, stderr=pipe)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "outcome='completed'" in out


def test_the_quickstart_config_writes_out_the_defaults():
    assert load_config(CONFIG, environ={}).model_copy(update={"run": Config().run}) == Config()
    assert set(YAML(typ="safe").load(CONFIG)) <= set(Config.model_fields)


def test_the_picture_of_the_architecture_has_every_package_of_core():
    packages = {path.parent.name for path in (ROOT / "core/agentrl").glob("*/__init__.py")}
    picture = (ROOT / "docs/contributing.md").read_text(encoding="utf-8").split("```text")[1].split("```")[0]
    assert packages - set(re.findall(r"(\w+)/", picture)) == set()


def test_the_messages_that_troubleshooting_quotes_are_messages_of_core():
    source = " ".join(re.sub(r"\s+", " ", path.read_text()) for path in (ROOT / "core/agentrl").rglob("*.py"))
    source = re.sub(r'" f?"', "", source)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = [piece.strip() for text in re.findall(r'"([^"]+)"', page) for piece in text.split("…")]
    assert len(quoted) > 8
    assert [each for each in quoted if each not in source and not each.startswith("pip install")] == []
