"""Plugins that are on no index are found where core was installed from, with the command that installs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins, entries

ROOT = Path(__file__).parents[2]
BROUGHT = [
    ("agents", "camel-math", "agentrl-camel"),
    ("agents", "openai-agents-handoff", "agentrl-openai-agents"),
    ("backends", "vllm", "agentrl-vllm"),
    ("models", "smollm2-135m", "agentrl-smollm2"),
    ("tasks", "one-digit-sums", "agentrl-smollm2"),
]
Install = Callable[[Path | None], None]


@pytest.fixture
def installed_from(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Has core installed from a folder, or from an index."""

    def install(folder: Path | None) -> None:
        monkeypatch.setattr(entries, "_direct_url", lambda: "" if folder is None else folder.as_uri())

    return install


@pytest.mark.parametrize(("kind", "name", "project"), BROUGHT)
def test_a_name_that_a_plugin_of_the_checkout_brings_says_how_it_is_installed(
    installed_from: Install, kind: str, name: str, project: str
) -> None:
    installed_from(ROOT)
    plugins = Plugins()
    if plugins.has(kind, name):
        pytest.skip(f"{project} is installed here")
    with pytest.raises(ConfigError) as caught:
        find_model(plugins, ModelSection(name=name)) if kind == "models" else plugins.get(kind, name)
    told = str(caught.value)
    assert f"comes with {project}" in told
    assert f"pip install {ROOT}/plugins/{project}, or pip install {project} where it is on an index" in told
    assert (f"agentrl env create {project.removeprefix('agentrl-')}" in told) == (kind == "agents")


def test_without_a_checkout_the_checkouts_form_is_said_all_the_same(installed_from: Install) -> None:
    installed_from(None)
    plugins = Plugins()
    if plugins.has("backends", "vllm"):
        pytest.skip("agentrl-vllm is installed here")
    with pytest.raises(ConfigError) as caught:
        plugins.get("backends", "vllm")
    assert "pip install agentrl-vllm, or in a checkout of it pip install ./plugins/agentrl-vllm" in str(caught.value)


def test_a_plugin_that_is_being_written_hides_no_other(installed_from: Install, tmp_path: Path) -> None:
    for name, text in [("a", "[project"), ("b", ""), ("c", 'x = 1\n[project]\nname = "c"\n')]:
        (tmp_path / "plugins" / name).mkdir(parents=True)
        (tmp_path / "plugins" / name / "pyproject.toml").write_text(text)
    with (tmp_path / "plugins/c/pyproject.toml").open("a") as file:
        file.write('[project.entry-points."agentrl.agents"]\nmine = "c:Agent"\n')
    installed_from(tmp_path)
    assert entries.provider("agents", "mine") == "c"
    assert entries.provider("agents", "other") is None
    assert entries.beside_core("C") == tmp_path / "plugins/c"


def test_every_readme_says_the_checkouts_form_where_it_says_what_to_install() -> None:
    for readme in [ROOT / "README.md", *ROOT.glob("plugins/*/README.md")]:
        text = readme.read_text(encoding="utf-8")
        if "pip install agentrl-" in text or "] agentrl-" in text:
            assert "./plugins/agentrl-" in text, readme
