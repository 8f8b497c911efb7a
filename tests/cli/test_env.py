"""``agentrl env``, and the agents of environments in ``agentrl list-agents``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.environments.known import MANIFEST, write_camel, write_environment
from tests.plugins.installing import install

from agentrl.cli import main
from agentrl.cli.boundary import interruptible
from agentrl.cli.env import narrator, summary
from agentrl.environments import creating, environments
from agentrl.environments.creating import Created
from agentrl.plugins.entries import Broken, Distribution, core_version


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "environments"


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTRL_")}
    return subprocess.run(
        [sys.executable, "-m", "agentrl", *arguments],
        capture_output=True,
        text=True,
        env={**inherited, "AGENTRL_ENVIRONMENTS": str(folder), **environ},
        timeout=60,
    )


def output(folder: Path, *arguments: str, **environ: str) -> list[str]:
    done = run(folder, *arguments, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def listed(folder: Path, *arguments: str) -> Any:
    return json.loads("\n".join(output(folder, *arguments, "--json")))


def test_agents_of_environments_are_listed_after_the_installed_ones(folder: Path) -> None:
    write_camel(folder / "camel", agents=("camel-math", "camel-society"))
    lines = [line.split(None, 4) for line in output(folder, "list-agents")]
    assert [line[0] for line in lines[-2:]] == ["camel-math", "camel-society"]
    assert lines[-1][1:] == ["agentrl-camel", "0.3", "camel_mod:Agent", "in environment camel"]
    assert not any("in environment" in line[-1] for line in lines[:-2])
    assert len([line for line in lines if line[0] == "math"]) == 1
    agents = {agent["name"]: agent for agent in listed(folder, "list-agents")["agents"]}
    assert agents["math"]["environment"] is None
    assert agents["camel-math"] == {
        "name": "camel-math",
        "reference": "camel-math",
        "distribution": "agentrl-camel",
        "version": "0.3",
        "target": "camel_mod:Agent",
        "help": "",
        "settings": [],
        "environment": "camel",
        "python": str(folder / "camel" / "bin" / "python"),
    }


def test_an_agent_that_its_name_alone_does_not_mean_is_listed_with_its_interpreter(folder: Path) -> None:
    write_camel(folder / "camel", agents=("math", "camel-math"))
    write_camel(folder / "camel-2")
    found = [line.partition("in environment ")[2] for line in output(folder, "list-agents")]
    assert [place for place in found if place] == [
        f"camel: agent.python={folder}/camel/bin/python",
        f"camel: agent.python={folder}/camel/bin/python",
        f"camel-2: agent.python={folder}/camel-2/bin/python",
    ]


@pytest.mark.parametrize("name", ["camel", "agentrl-camel", "camel-math"])
def test_disabling_hides_agents_of_environments_too(folder: Path, name: str) -> None:
    write_camel(folder / "camel")
    for lines in (
        output(folder, "-p", f"no:{name}", "list-agents"),
        output(folder, "list-agents", AGENTRL_DISABLE_PLUGINS=name),
    ):
        assert [line for line in lines if line.startswith("math ")]
        assert not [line for line in lines if "camel" in line]
    assert run(folder, "-p", "no:cammel", "list-agents").returncode == 2


def test_what_cannot_be_used_of_environments_is_listed_as_broken(folder: Path) -> None:
    write_camel(folder / "gone")
    (folder / "gone" / "bin" / "python").unlink()
    site = write_camel(folder / "camel")
    install(site, "agentrl-future", {"agentrl.agents": {"future": "f:F"}}, requires=("agentrl-core>=99",))
    python = folder / "gone" / "bin" / "python"
    broken = [line for line in output(folder, "list-agents") if line.startswith("broken: ")]
    assert broken == [
        "broken: agentrl-future (agentrl-future 1.0): it needs agentrl-core>=99 and this is "
        f"{core_version()} in environment camel",
        f"broken: environment gone: its interpreter {python} is gone (agentrl env create gone --replace)",
    ]
    reasons = {(each["name"], each["environment"]): each["reason"] for each in listed(folder, "list-agents")["broken"]}
    assert reasons.keys() == {("agentrl-future", "camel"), (None, "gone")}


def test_list_shows_what_is_in_each_environment(folder: Path) -> None:
    write_camel(folder / "camel")
    write_environment(folder / "bare")
    assert [" ".join(line.split()) for line in output(folder, "env", "list")] == [
        f"bare Python 3.11.4 agentrl-core {core_version()} no plugin no agent {folder}/bare",
        f"camel Python 3.11.4 agentrl-core {core_version()} agentrl-camel 0.3 camel-math {folder}/camel",
    ]
    camel = listed(folder, "env", "list")["environments"][1]
    assert (camel["name"], camel["core"], camel["is_current"]) == ("camel", core_version(), True)
    assert camel["plugins"] == [{"name": "agentrl-camel", "version": "0.3"}]
    assert camel["agents"] == ["camel-math"]


def test_a_new_environment_is_told_by_what_it_holds_and_how_its_agents_are_trained(folder: Path) -> None:
    write_camel(folder / "camel")
    write_environment(folder / "agno", manifest=replace(MANIFEST, sources=("agno", "/my-tools")))
    write_camel(folder / "vllm", name="agentrl-vllm", agents=())
    assert {known.name: list(summary(known)) for known in environments({"AGENTRL_ENVIRONMENTS": str(folder)})} == {
        "agno": [
            f"agno: agno, /my-tools in {folder}/agno",
            "train: agentrl train my_agent.py:MyAgent agent.python=agno",
        ],
        "camel": [f"camel: agentrl-camel 0.3 in {folder}/camel", "train: agentrl train camel-math"],
        "vllm": [f"vllm: agentrl-vllm 0.3 in {folder}/vllm"],
    }


def test_list_marks_what_is_wrong_with_the_command_that_mends_it(folder: Path) -> None:
    write_environment(folder / "old", core="0.0.1")
    write_environment(folder / "begun", manifest=None)
    lines = output(folder, "env", "list")
    assert lines[1:] == [
        f"outdated: old has agentrl-core 0.0.1 and this is {core_version()} (agentrl env create old --replace)",
        f"incomplete: {folder}/begun (agentrl env create begun, or agentrl env remove begun)",
    ]
    report = listed(folder, "env", "list")
    assert report["environments"][0]["is_current"] is False
    assert report["incomplete"] == [{"name": "begun", "path": str(folder / "begun")}]


def test_without_environments_it_says_where_they_would_be(folder: Path) -> None:
    done = run(folder, "env", "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"there is no environment in {folder}\n"


def test_remove_says_what_is_gone_and_knows_near_names(folder: Path) -> None:
    write_camel(folder / "camel")
    done = run(folder, "env", "remove", "cammel")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no environment 'cammel' (did you mean 'camel'?)" in done.stderr
    assert output(folder, "env", "remove", "camel") == [f"removed {folder}/camel"]
    assert not (folder / "camel").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Make, list and remove environments."),
        (("creat",), 2, "there is no command 'env creat' (did you mean 'create'?)"),
        (("create",), 2, "Missing argument 'NAME'"),
        (("create", "camel==0.1"), 2, "write agentrl env create camel --from agentrl-camel==0.1"),
        (("create", "camel", "--from", "./nowhere"), 2, "there is no"),
        (("create", "camel", "--python", "python9"), 2, "there is no interpreter 'python9'"),
        (("create", "camel", "--timeout", "0"), 2, "0.0 is not in the range"),
        (("create", "camel", "--timeout", "inf"), 2, "inf is not in the range"),
        (("create", "camel", "--timeout", "0.001"), 3, "python -m venv was not done after 0.001 s"),
    ],
)
def test_what_cannot_be_is_answered_with_the_fix(
    folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = run(folder, "env", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_global_options_work_after_each_verb(folder: Path) -> None:
    write_camel(folder / "camel")
    assert output(folder, "env", "list", "-p", "no:camel-math", "--debug")
    assert run(folder, "env", "list", "-p", "camel").returncode == 2


def test_a_plugin_that_does_not_load_in_its_environment_is_an_error_though_it_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_camel(folder / "camel")
    (made,) = environments({"AGENTRL_ENVIRONMENTS": str(folder)})
    faults = [Broken("camel-math", Distribution("agentrl-camel", "0.3"), "importing camel raised ImportError: mcp")]
    monkeypatch.setattr(creating, "create_environment", lambda *_: Created(made, faults))
    with pytest.raises(SystemExit) as left:
        main(["env", "create", "camel"])
    assert left.value.code == 3
    text = capsys.readouterr().err
    assert "is made, but in it these do not load: camel-math (agentrl-camel 0.3): importing camel raised" in text
    assert f"{made.python} -m pip installs what is missing" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_as_ctrl_c_does_unless_they_are_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with interruptible():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


def test_on_a_terminal_the_newest_line_is_drawn_over_the_one_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with narrator() as told:
        told.say("installing a")
        told.show("")
        told.show("Downloading [1/2] " + "x" * 200)
    text = capsys.readouterr().err
    assert "installing a\n" in text.replace("\r", "")
    assert "x" * 61 not in text
