"""What is installed, and from where."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from tests.environments.projects import write_core, write_plugin
from tests.plugins.installing import install

from agentrl.environments import sources
from agentrl.environments.contract import Recipe
from agentrl.environments.creating import installation
from agentrl.environments.sources import copied, core_source, parse_source, tidied
from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins
from agentrl.plugins import entries as core_entries
from agentrl.plugins.entries import core_version


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds core and a plugin; core is installed from it."""
    folder = write_core(tmp_path / "check out")
    write_plugin(folder / "plugins" / "agentrl-camel", "agentrl-camel", camel_math="")
    install_core_from(folder.as_uri(), monkeypatch)
    return folder


def install_core_from(url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let core be installed from ``url``, as PEP 610 has it; from an index where that is ``None``."""
    monkeypatch.setattr(core_entries, "_direct_url", lambda: url or "")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    return site


def test_what_a_build_left_in_a_checkout_does_not_hide_where_core_came_from(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_core(tmp_path / "checkout")
    installed, left = site / "agentrl_core-9.9.dist-info", folder / "agentrl_core.egg-info"
    for metadata, name in ((installed, "METADATA"), (left, "PKG-INFO")):
        metadata.mkdir()
        (metadata / name).write_text("Metadata-Version: 2.1\nName: agentrl-core\nVersion: 9.9\n")
    (installed / "direct_url.json").write_text(json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}}))
    monkeypatch.syspath_prepend(folder)
    assert sources.core_source().folder == folder


def texts(name: str, *asked: str) -> list[str]:
    return [source.text for source in installation(name, asked, Plugins()).sources]


def test_a_source_is_a_folder_an_archive_a_url_or_a_requirement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_plugin(tmp_path / "mine", "AgentRL_Mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "setup.py").touch()
    wheel = tmp_path / "agentrl_core-0.1-py3-none-any.whl"
    wheel.touch()
    (tmp_path / "my-plugin-1.0.tar.gz").touch()
    monkeypatch.chdir(tmp_path)
    mine = parse_source("./mine")
    assert (mine.text, mine.project, mine.folder) == (str(tmp_path / "mine"), "agentrl-mine", tmp_path / "mine")
    assert parse_source(f"{tmp_path}/mine") == mine
    assert parse_source("./old").project is None
    assert (parse_source(str(wheel)).text, parse_source(str(wheel)).is_core) == (str(wheel), True)
    assert str(parse_source(str(wheel))) == f"the file {wheel}"
    assert parse_source("./my-plugin-1.0.tar.gz").project == "my-plugin"
    assert parse_source("git+https://example.org/a.git").text == "git+https://example.org/a.git"
    assert parse_source("a @ https://example.org/a.whl").project == "a"
    assert parse_source("AgentRL_camel[x]>=0.1").project == "agentrl-camel"
    # As pip has it: what does not look like a path is a requirement, whatever lies here.
    assert parse_source("mine").folder is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("./nowhere", r"there is no .*/nowhere to install from \(name a folder that holds a pyproject.toml\)"),
        ("./empty", r".*/empty is no Python project"),
        ("-r", r"'-r' is no requirement"),
        ("--index-url=https://example.org", r"'--index-url=https://example.org' is no requirement"),
        ("two words", r"'two words' is no requirement.* \(write a folder as ./folder"),
        ("./torn", r".*/torn/pyproject.toml cannot be read"),
    ],
)
def test_what_is_none_of_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "pyproject.toml").write_text("[project")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        parse_source(text)


def test_core_and_the_plugin_come_from_the_checkout_that_core_was_installed_from(checkout: Path) -> None:
    assert texts("camel") == [str(checkout), str(checkout / "plugins" / "agentrl-camel")]
    assert texts("other") == [str(checkout), "agentrl-other"]


@pytest.mark.parametrize("url", [None, "https://example.org/core.whl", "file:///nowhere/core"])
def test_without_a_checkout_both_come_from_the_index(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    install_core_from(url, monkeypatch)
    assert texts("camel") == [f"agentrl-core=={core_version()}", "agentrl-camel"]


def test_where_core_was_installed_from_is_read_from_its_metadata() -> None:
    source = core_source()
    assert source.is_core
    assert source.folder is None or (source.folder / "core" / "agentrl").is_dir()


def test_sources_that_are_asked_for_replace_the_plugin_and_core_too_if_it_is_among_them(checkout: Path) -> None:
    assert texts("camel", "agentrl-camel==0.1", "extra") == [str(checkout), "agentrl-camel==0.1", "extra"]
    assert texts("camel", "agentrl-camel", "agentrl-core==0.1") == ["agentrl-core==0.1", "agentrl-camel"]
    assert texts("camel", "extra", str(checkout)) == [str(checkout), "extra"]


def test_a_recipe_of_an_installed_plugin_says_what_an_environment_needs(site: Path, checkout: Path) -> None:
    code = (
        "from agentrl.environments import Recipe\n"
        "RECIPE = Recipe(('engine-cpu==1.0', 'agentrl-camel'), uninstall=('vision',))\n"
        "def chosen_here():\n    return Recipe(('engine',))\n"
        "WRONG = ['engine']\n"
    )
    entries = {"engine": "engine_mod:RECIPE", "chosen": "engine_mod:chosen_here", "wrong": "engine_mod:WRONG"}
    install(site, "agentrl-engine", {"agentrl.environments": entries}, files={"engine_mod.py": code})
    made = installation("engine", (), Plugins())
    assert [source.text for source in made.sources[1:]] == ["engine-cpu==1.0", str(checkout / "plugins/agentrl-camel")]
    assert made.uninstall == ("vision",)
    asked = installation("engine", ("engine-gpu",), Plugins())
    assert [source.text for source in asked.sources[1:]] == ["engine-gpu"]
    assert asked.uninstall == ("vision",)
    assert texts("chosen")[1:] == ["engine"]
    with pytest.raises(PluginError, match=re.escape("the recipe 'wrong' is of type list (it should be a Recipe)")):
        installation("wrong", (), Plugins())
    assert Recipe(("a",)) == Recipe(("a",), ())


def test_a_folder_is_built_from_a_copy_without_what_is_no_part_of_the_project(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", "agentrl-mine")
    kept = {"src/pkg/runs/__init__.py", "src/pkg/build/__init__.py", "runs.py", "data/x.json"}
    left_out = {
        ".git/HEAD",
        "env/pyvenv.cfg",
        "nested/.tox/x",
        "runs/one/config.yaml",
        "build/lib/old.py",
        "src/agentrl_mine.egg-info/entry_points.txt",
        "src/pkg/__pycache__/x.pyc",
        ".mypy_cache/x",
    }
    for name in kept | left_out:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dangling").symlink_to("nowhere")
    source = parse_source(str(folder))
    (copy,) = copied([source], tmp_path / "copies")
    files = {str(path.relative_to(copy)) for path in Path(copy).rglob("*") if path.is_file()}
    assert files == kept | {"pyproject.toml", "backend.py"}
    assert copied([parse_source("camel-ai")], tmp_path / "copies") == ["camel-ai"]


def test_an_editable_folder_loses_what_its_build_left_and_keeps_what_it_had(tmp_path: Path) -> None:
    folder = write_plugin(tmp_path / "mine", "agentrl-mine")
    (folder / "older.egg-info").mkdir()
    with tidied([parse_source(str(folder)), parse_source("camel-ai")]) as arguments:
        assert arguments == ["-e", str(folder), "camel-ai"]
        (folder / "build").mkdir()
        (folder / "src" / "agentrl_mine.egg-info").mkdir()
    assert sorted(os.listdir(folder)) == ["backend.py", "older.egg-info", "pyproject.toml", "src"]
    assert os.listdir(folder / "src") == []


def test_a_source_is_told_with_where_it_comes_from(checkout: Path) -> None:
    assert [str(source) for source in installation("other", (), Plugins()).sources] == [
        f"agentrl-core from the folder {checkout}",
        "agentrl-other from the package index",
    ]
    assert str(parse_source("https://example.org/a.whl")) == "https://example.org/a.whl"
