"""Where a model comes from: a registered folder, one that a plugin makes at its first use, a local folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.plugins.installing import install

from agentrl.config.models import ModelSection
from agentrl.errors import ConfigError, PluginError
from agentrl.inference.model_folder import find_model
from agentrl.plugins import Plugins


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Finds the model that a plugin registers as ``mine``, given the code that says what it is."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def found(code: str) -> Path:
        sys.modules.pop("my_models", None)
        files = {"my_models.py": f"from agentrl.errors import PluginError\n{code}"}
        install(site, "mine", {"agentrl.models": {"mine": "my_models:MODEL"}}, files=files)
        return find_model(Plugins(), ModelSection(name="mine"))

    yield found
    sys.modules.pop("my_models", None)


@pytest.mark.parametrize("code", ["MODEL = {!r}", "def MODEL(): return {!r}"])
def test_a_registered_model_is_a_folder_or_a_function_that_returns_one(found, folder, code):
    assert found(code.format(str(folder))) == folder


@pytest.mark.parametrize("code", ["MODEL = 7", "MODEL = None", "def MODEL(): pass"])
def test_what_is_no_folder_names_the_plugins_fault(found, code):
    with pytest.raises(PluginError, match="model 'mine' is registered as"):
        found(code)


def test_an_error_of_the_function_is_told_as_it_is(found):
    with pytest.raises(PluginError, match=r"the weights cannot be fetched \(connect\)"):
        found("def MODEL(): raise PluginError('the weights cannot be fetched', fix='connect')")


def test_a_folder_without_a_model_is_refused(found, tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        found(f"MODEL = {str(tmp_path)!r}")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("first", r"did you mean 'runs/first'\?"),
        ("./runs/frist", r"in .*runs: did you mean 'first'\?"),
        ("./runs/first/step", r"there is no folder in .*first"),
        ("tinny", "did you mean 'tiny'"),
    ],
)
def test_a_name_of_no_model_is_told_with_the_run_or_folder_that_may_be_meant(tmp_path, monkeypatch, name, near):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=near):
        find_model(Plugins(), ModelSection(name=name))


def test_a_name_that_could_be_one_of_the_hub_is_told_with_what_is_beside_it(tmp_path, monkeypatch):
    def offline(name, **_):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"no network \(in .*runs: did you mean 'first'\?; or check the path or the id"
    ):
        find_model(Plugins(), ModelSection(name="runs/frist"))
    with pytest.raises(ConfigError, match=r"no network \(check the path or the id"):
        find_model(Plugins(), ModelSection(name="somebody/model"))
