"""Which environments there are, what is in them, and which one an agent's name means."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.environments.known import MANIFEST, write_camel, write_environment
from tests.plugins.installing import install

from agentrl.config import Config, load_config
from agentrl.environments import (
    entries_elsewhere,
    environment_of,
    environments,
    environments_folder,
    find_environment,
    incomplete,
    locate_agent,
)
from agentrl.environments.environment import LOG, environment_name, read_manifest, write_manifest
from agentrl.environments.environment import MANIFEST as MANIFEST_NAME
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins


def config(agent: str, *settings: str) -> Config:
    return load_config(None, f"agent={agent}", *settings, environ={})


def all_plugins(*disabled: str) -> Plugins:
    return Plugins(disabled, elsewhere=entries_elsewhere)


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"AGENTRL_ENVIRONMENTS": "/a/b", "XDG_DATA_HOME": "/x"}, Path("/a/b")),
        ({"AGENTRL_ENVIRONMENTS": "b"}, Path.cwd() / "b"),
        ({"AGENTRL_ENVIRONMENTS": "~/b"}, Path.home() / "b"),
        ({"AGENTRL_ENVIRONMENTS": "", "XDG_DATA_HOME": "/x"}, Path("/x/agentrl/environments")),
    ],
)
def test_the_environment_says_where_environments_are(environ: dict[str, str], place: Path) -> None:
    assert environments_folder(environ) == place


@pytest.mark.parametrize("environ", [{}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative"}])
def test_otherwise_they_are_in_the_user_s_data_folder(environ: dict[str, str]) -> None:
    data = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    assert environments_folder(environ) == Path.home() / data / "agentrl" / "environments"


def test_a_user_without_a_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(PluginError, match=r"no home folder .* \(set AGENTRL_ENVIRONMENTS to a folder\)"):
        environments({})


@pytest.mark.parametrize(
    ("text", "name"), [("camel", "camel"), ("agentrl-camel", "camel"), ("My_env-2.0", "My_env-2.0")]
)
def test_a_distribution_s_name_is_its_environment_s(text: str, name: str) -> None:
    assert environment_name(text) == name


@pytest.mark.parametrize("text", ["", "agentrl-", ".", "..", ".hidden", "-x", "a/b", "a b", "a\n", "ä"])
def test_what_cannot_be_a_folder_s_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not the name of an environment \(letters, digits and - _ \. make"):
        environment_name(text)


def test_a_name_with_a_version_is_refused_with_the_command_that_means_it() -> None:
    fix = "write agentrl env create camel --from 'agentrl-camel[x]>=0.1'"
    with pytest.raises(ConfigError, match=re.escape(fix)):
        environment_name("camel[x]>=0.1")


def test_without_a_folder_there_are_none(folder: Path) -> None:
    assert environments() == ()
    assert incomplete() == ()


def test_an_environment_is_read_without_starting_its_interpreter(folder: Path) -> None:
    write_camel(folder / "camel")
    (folder / "camel" / "bin" / "python").unlink()
    (folder / "camel" / "bin" / "python").symlink_to("/bin/false")
    (environment,) = environments()
    assert (environment.name, environment.path) == ("camel", folder / "camel")
    assert environment.python == folder / "camel" / "bin" / "python"
    assert environment.manifest == MANIFEST
    assert [str(plugin) for plugin in environment.plugins] == ["agentrl-camel 0.3"]
    assert [entry.target for entry in environment.entries("agents")] == ["camel_mod:Agent"]
    assert environment_of(environment.python) == environment
    assert environment_of(Path(sys.executable)) is None


def test_a_half_made_environment_does_not_count(folder: Path) -> None:
    write_environment(folder / "begun", manifest=None)
    write_environment(folder / "torn")
    (folder / "torn" / MANIFEST_NAME).write_text('{"python_version": "3.')
    (folder / "starting").mkdir()
    (folder / "starting" / LOG).touch()
    (folder / "somebody's").mkdir()
    (folder / "file").touch()
    assert environments() == ()
    assert [path.name for path in incomplete()] == ["begun", "starting", "torn"]


def test_a_record_reads_back_equal_and_one_of_another_shape_not_at_all(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, interpreter="/usr/bin/python3", sources=("/a", "b==1"), editable=True)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    written = json.loads((tmp_path / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**written, "of_a_later_version": 1}))
    assert read_manifest(tmp_path) == manifest
    for text in ("[]", "{}", '{"python_version": "3.11.4"}', "nonsense", ""):
        (tmp_path / MANIFEST_NAME).write_text(text)
        assert read_manifest(tmp_path) is None


def test_a_folder_that_cannot_be_read_is_an_error_with_its_variable(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(PluginError, match=r"cannot read the environments in .*: Not a directory .set AGENTRL_ENV"):
        environments()


def test_an_unknown_environment_is_answered_with_those_that_are_near(folder: Path) -> None:
    write_camel(folder / "camel")
    assert find_environment("agentrl-camel").name == "camel"
    with pytest.raises(ConfigError, match=r"there is no environment 'cammel' \(did you mean 'camel'\?\)"):
        find_environment("cammel")


def test_a_plugin_made_for_another_core_than_the_environment_has_is_broken_there(folder: Path) -> None:
    site = write_environment(folder / "mixed", core="0.7")
    install(site, "agentrl-old", {"agentrl.agents": {"old": "m:A"}}, requires=("agentrl-core<0.5",))
    install(site, "agentrl-new", {"agentrl.agents": {"new": "m:A"}}, requires=("agentrl-core>=0.7",))
    (environment,) = environments()
    assert environment.core == "0.7"
    assert [entry.name for entry in environment.entries("agents")] == ["new"]
    (broken,) = environment.broken
    assert str(broken) == "agentrl-old (agentrl-old 1.0): it needs agentrl-core<0.5 and this is 0.7"


def test_an_agent_that_only_an_environment_has_gets_its_interpreter(folder: Path) -> None:
    write_camel(folder / "camel")
    before = config("camel-math", "agent.kwargs.turns=2", "rollout.max_workers=1")
    located = locate_agent(before, all_plugins())
    assert located.agent.python == folder / "camel" / "bin" / "python"
    assert located.runs_in_workers
    assert located.model_copy(update={"agent": before.agent}) == before
    assert located.agent.model_copy(update={"python": None}) == before.agent
    assert locate_agent(config("agentrl_camel/camel-math"), all_plugins()) == located.model_copy(
        update={"agent": located.agent.model_copy(update={"name": "agentrl_camel/camel-math", "kwargs": {}})}
        | {"rollout": Config().rollout}
    )
    assert locate_agent(config("camel-math", "rollout.mode=subproc"), all_plugins()).agent.python is not None


@pytest.mark.parametrize(
    "agent", ["math", "agentrl-core/math", "camel_mod:Agent", "file.py:Agent", "file.py", "nobody"]
)
def test_what_is_installed_here_or_is_no_name_or_nobody_s_stays_as_it_is(folder: Path, agent: str) -> None:
    write_camel(folder / "camel", agents=("math", "camel-math"))
    assert locate_agent(config(agent), all_plugins()) == config(agent)


def test_what_agent_python_says_decides(folder: Path) -> None:
    write_camel(folder / "camel")
    elsewhere = config("camel-math", "agent.python=/elsewhere/python")
    assert locate_agent(elsewhere, all_plugins()) == elsewhere


def test_an_environments_name_stands_for_its_interpreter(folder: Path) -> None:
    write_camel(folder / "camel")
    located = locate_agent(config("mine.py:agent", "agent.python=camel"), all_plugins())
    assert located.agent.python == folder / "camel" / "bin" / "python"
    unknown = config("mine.py:agent", "agent.python=python3.12")
    assert locate_agent(unknown, all_plugins()) == unknown


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ((), "agent 'camel-math', which is in the environment 'camel',"),
        (("agent.python=/elsewhere/python",), "agent.python=/elsewhere/python"),
    ],
)
def test_an_agent_of_another_interpreter_cannot_run_inline(folder: Path, settings: tuple[str, ...], what: str) -> None:
    write_camel(folder / "camel")
    with pytest.raises(ConfigError, match=re.escape(f"in this interpreter, and {what} needs another (set rollout.mo")):
        locate_agent(config("camel-math", "rollout.mode=inline", *settings), all_plugins())


def test_an_agent_of_two_environments_is_an_error_that_names_both_choices(folder: Path) -> None:
    write_camel(folder / "camel")
    write_camel(folder / "camel-old", "agentrl-camel-fork")
    with pytest.raises(PluginError) as caught:
        locate_agent(config("camel-math"), all_plugins())
    choices = " or ".join(f"agent.python={folder / name / 'bin' / 'python'}" for name in ("camel", "camel-old"))
    assert str(caught.value) == f"agent 'camel-math' is in the environments camel and camel-old (set {choices})"
    one = locate_agent(config("agentrl-camel-fork/camel-math"), all_plugins())
    assert one.agent.python == folder / "camel-old" / "bin" / "python"


def test_an_environment_whose_interpreter_is_gone_is_said_to_be_with_the_command(folder: Path) -> None:
    write_camel(folder / "camel")
    (folder / "camel" / "bin" / "python").unlink()
    with pytest.raises(PluginError, match=r"its interpreter .* is gone \(agentrl env create camel --replace\)"):
        locate_agent(config("camel-math"), all_plugins())
    write_camel(folder / "camel2")
    assert locate_agent(config("camel-math"), all_plugins()).agent.python == folder / "camel2" / "bin" / "python"


def test_an_unknown_agent_is_answered_with_those_of_environments_that_are_near(folder: Path) -> None:
    write_camel(folder / "camel")
    plugins = all_plugins()
    with pytest.raises(ConfigError, match=r"there is no agent 'camel-mth' \(did you mean 'camel-math'\?\)"):
        plugins.get("agents", locate_agent(config("camel-mth"), plugins).agent.name)
    # Rewards run here, so those of environments are no answer.
    with pytest.raises(ConfigError, match=r"there is no reward 'camel-math' \(did you mean 'numeric-match'"):
        plugins.get("rewards", "camel-math")


def test_a_backend_that_only_an_environment_has_is_told_with_what_to_install_here(folder: Path) -> None:
    site = write_environment(folder / "swift")
    install(site, "agentrl-swift", {"agentrl.backends": {"swift": "swift_mod:Backend"}}, version="0.3")
    with pytest.raises(
        ConfigError, match=r"'swift' of agentrl-swift 0.3 is in an env.*here too: pip install agentrl-swift"
    ):
        all_plugins().get("backends", "swift")
    with pytest.raises(ConfigError, match="did you mean 'swift'"):
        all_plugins().get("backends", "swft")


@pytest.mark.parametrize("disabled", ["camel", "agentrl-camel", "camel-math", "agentrl-camel/camel-math"])
def test_a_disabled_plugin_is_not_looked_for_in_environments(folder: Path, disabled: str) -> None:
    write_camel(folder / "camel")
    plugins = all_plugins(disabled)
    assert locate_agent(config("camel-math"), plugins) == config("camel-math")
    with pytest.raises(
        ConfigError, match=rf"agent 'camel-math' of agentrl-camel 0.3 is left out: .* -p no:{disabled} "
    ):
        plugins.get("agents", "camel-math")


def test_a_name_that_no_interpreter_has_cannot_be_disabled(folder: Path) -> None:
    write_camel(folder / "camel")
    with pytest.raises(ConfigError, match=r"no plugin 'cammel' to disable \(did you mean .*camel"):
        all_plugins("cammel")
    assert all_plugins("camel-hooks").disabled == ("camel-hooks",)
