"""``agentrl new-plugin``: what may be a name, where a plugin is written, and that it is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from agentrl.cli import main
from agentrl.plugins import Plugins
from agentrl.plugins.kinds import HOOKS
from agentrl.plugins.kinds import KINDS as KNOWN
from agentrl.scaffold import PluginKind, next_commands, plugin_name, write_plugin
from agentrl.scaffold.names import GROUPS, PluginName

KINDS: tuple[PluginKind, ...] = get_args(PluginKind)
NAMES = ["x", "my-agent", "reward", "sql-search-agent-2"]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the verb where it must fail as a usage error, with nothing left behind; returns the line that says why."""
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as left:
            main(["new-plugin", *arguments])
        assert left.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    return refused


@pytest.mark.parametrize("text", ["my-agent", "agentrl-my-agent", "agentrl_my_agent", "My_Agent", "my.agent"])
def test_a_name_means_the_same_in_every_spelling(text: str) -> None:
    name = plugin_name(text, "agent", Plugins())
    assert (name.entry, name.distribution, name.package) == ("my-agent", "agentrl-my-agent", "agentrl_my_agent")
    assert (name.class_of("Agent"), name.class_of("Reward")) == ("MyAgent", "MyAgentReward")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("", "'my-plugin'"),
        ("agentrl-", "'my-plugin'"),
        ("2fast", "'fast'"),
        ("--fast--", "'fast'"),
        ("my agent!", "'my-agent'"),
        ("../evil", "'evil'"),
        ("naïve", "'na-ve'"),
        ("class", "'class-plugin'"),
        ("agentrl-import", "'import-plugin'"),
        ("日本", "'my-plugin'"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_a_name_that_can(text: str, near: str, refused) -> None:
    line = refused("--kind", "agent", "--", text)
    assert repr(text) in line
    assert near in line
    assert plugin_name(near.strip("'"), "agent", Plugins()).entry == near.strip("'")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("agent", "math", "agent 'math' exists: agentrl-core"),
        ("agent", "agentrl-multi-turn-math", "agent 'multi_turn_math' exists: agentrl-core"),
        ("reward", "exact_match", "reward 'exact-match' exists: agentrl-core"),
        ("backend", "torch", "backend 'torch' exists: agentrl-core"),
        ("backend", "core", "agentrl-core"),
        ("tasks", "arithmetic", "task set 'arithmetic' exists: agentrl-core"),
        ("model", "tiny", "model 'tiny' exists: agentrl-core"),
        ("algorithm", "grpo", "algorithm 'grpo' exists: agentrl-core"),
        ("algorithm", "group", "algorithm part 'advantage.group' exists: agentrl-core"),
        ("tracker", "tensorboard", "tracker 'tensorboard' exists: agentrl-core"),
        ("executor", "subproc", "executor 'subproc' exists: agentrl-core"),
        ("dialect", "chat", "dialect 'chat' exists: agentrl-core"),
        ("command", "train", "command 'train' exists: agentrl has it"),
        ("reward", "agents", "package agentrl_agents"),
    ],
)
def test_a_name_that_something_installed_has_is_refused(kind: str, text: str, said: str, refused) -> None:
    line = refused(text, "--kind", kind)
    assert said in line
    assert "choose another name" in line


def test_a_name_that_another_kind_has_is_free() -> None:
    assert plugin_name("math", "reward", Plugins()).entry == "math"


def test_an_existing_folder_is_refused_even_where_it_is_a_link_to_nowhere(tmp_path: Path, refused) -> None:
    (tmp_path / "agentrl-mine").mkdir()
    (tmp_path / "agentrl-yours").symlink_to(tmp_path / "nowhere")
    assert "agentrl-mine exists" in refused("mine", "--kind", "agent")
    assert "agentrl-yours exists" in refused("yours", "--kind", "agent")


def test_a_folder_to_write_in_has_to_exist(tmp_path: Path, refused) -> None:
    (tmp_path / "file").touch()
    assert "mkdir -p nowhere" in refused("mine", "--kind", "agent", "--into", "nowhere")
    assert "'file'" in refused("mine", "--kind", "agent", "--into", "file")


def test_a_folder_that_cannot_be_written_is_refused_and_left_as_it_was(tmp_path: Path, monkeypatch, refused) -> None:
    """The disk fills up with the last file."""
    write, written = Path.write_text, []

    def fill(path: Path, *arguments: str, **options: str) -> int:
        written.append(path)
        if path.name == "test_conformance.py":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fill)
    line = refused("mine", "--kind", "agent")
    assert len(written) > 1
    assert "agentrl-mine cannot be written: No space left on device" in line


def test_it_is_readable_to_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = write_plugin(PluginName("mine"), "agent", tmp_path)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "pyproject.toml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", KINDS)
def test_every_place_has_the_name_and_no_placeholder_is_left(kind: PluginKind, tmp_path: Path) -> None:
    folder = write_plugin(PluginName("my-own"), kind, tmp_path)
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)) for path in files}
    assert {"pyproject.toml", "README.md", ".gitignore", "src/agentrl_my_own/py.typed"} <= names
    for text in [*names, *(path.read_text() for path in files)]:
        assert not any(word in text for word in ("plugin-name", "plugin_name", "PluginName", "_VERSION", "NEXT_"))


def test_what_is_written_is_clean_by_ruff_s_defaults(tmp_path: Path) -> None:
    """Every kind under every name at once; the sources of each are the first party, as they are for its author."""
    sources = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for name in NAMES:
            folder = write_plugin(PluginName(name), kind, tmp_path / kind)
            sources += [str(folder), str(folder / "src")]
    for command in (["check"], ["format", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", f"--config=src={sources!r}", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("core", "declared"),
    [("0.1.0", ">=0.1.0,<0.2"), ("0.9.4.dev3+g12", ">=0.9.4.dev3,<0.10"), ("2.3.1", ">=2.3.1,<3")],
)
def test_it_is_made_for_this_core_up_to_the_next_that_may_differ(
    core: str, declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.scaffold.writing.core_version", lambda: core)
    folder = write_plugin(PluginName("mine"), "backend", tmp_path)
    assert f'"agentrl-core[train]{declared}"' in (folder / "pyproject.toml").read_text()


def test_its_commands_can_be_copied_where_nothing_is_on_the_path_and_folders_have_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env/bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env/bin/python"))
    install, listing, test, train = next_commands(PluginName("mine"), "reward", Path("my plugins/agentrl-mine"))
    assert install == "env/bin/python -m pip install -e './my plugins/agentrl-mine[test]'"
    assert listing == "env/bin/agentrl list-rewards"
    assert test == "env/bin/python -m pytest 'my plugins/agentrl-mine'"
    assert train == "env/bin/agentrl train 'my plugins/agentrl-mine/example_agent.py' reward=mine"


def test_the_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["new-plugin", "--help"])
    assert left.value.code == 0
    assert "agentrl new-plugin my-reward --kind reward --into plugins" in capsys.readouterr().out


def test_an_unknown_kind_is_answered_with_those_there_are(refused) -> None:
    line = refused("mine", "--kind", "agents")
    assert all(repr(kind) in line for kind in KINDS)


def test_every_kind_that_a_plugin_may_provide_can_be_started() -> None:
    """Recipes aside: an environment of a plugin is made by its name, and needs none."""
    assert {group for groups in GROUPS.values() for group in groups} == {*KNOWN, HOOKS} - {"environments"}
    assert {*GROUPS} == {*KINDS}
