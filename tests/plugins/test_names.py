"""Finding and importing what installed distributions declare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.plugins.installing import install

from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins

AGENT = "class Agent:\n    async def run(self, data):\n        return 1\n"
RAISES = "raise RuntimeError('no such chip')\n"


def test_an_entry_is_listed_without_being_imported_and_imported_when_it_is_used(site: Path) -> None:
    install(site, "agentrl-good", {"agentrl.agents": {"good": "good_mod:Agent"}}, files={"good_mod.py": AGENT})
    plugins = Plugins()
    (entry,) = [entry for entry in plugins.entries("agents") if entry.name == "good"]
    assert str(entry.distribution) == "agentrl-good 1.0"
    assert entry.target == "good_mod:Agent"
    assert "good_mod" not in sys.modules
    assert plugins.get("agents", "good").__name__ == "Agent"


def test_a_distribution_that_does_not_import_hides_nobody_and_raises_with_its_cause_when_named(site: Path) -> None:
    install(site, "agentrl-bad", {"agentrl.agents": {"bad": "bad_mod:Agent"}}, files={"bad_mod.py": RAISES})
    install(site, "agentrl-good", {"agentrl.agents": {"good": "good_mod:Agent"}}, files={"good_mod.py": AGENT})
    plugins = Plugins()
    plugins.get("agents", "good")
    with pytest.raises(PluginError, match=r"agent 'bad' of agentrl-bad 1\.0 does not load: .*no such chip") as caught:
        plugins.get("agents", "bad")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import not_installed_anywhere", "install 'not_installed_anywhere'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "invalid syntax"),
        ("", "has no 'Agent'"),
        (
            "def __getattr__(name):\n    raise OSError('gone')",
            r"looking up bad_mod:Agent raised OSError: gone at .*bad_mod.py:2",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_named(site: Path, text: str, reason: str) -> None:
    install(site, "agentrl-bad", {"agentrl.agents": {"bad": "bad_mod:Agent"}}, files={"bad_mod.py": text})
    with pytest.raises(PluginError, match=reason):
        Plugins().get("agents", "bad")


def test_an_interrupt_while_a_plugin_loads_is_the_users(site: Path) -> None:
    raising = {"bad_mod.py": "raise KeyboardInterrupt"}
    install(site, "agentrl-bad", {"agentrl.agents": {"bad": "bad_mod:Agent"}}, files=raising)
    with pytest.raises(KeyboardInterrupt):
        Plugins().get("agents", "bad")


def test_an_unknown_name_is_answered_with_those_that_are_near(site: Path) -> None:
    install(site, "agentrl-good", {"agentrl.agents": {"weather": "good_mod:Agent"}})
    with pytest.raises(ConfigError, match=r"there is no agent 'wether' \(did you mean 'weather'"):
        Plugins().get("agents", "wether")


def test_a_backend_that_nobody_has_may_be_a_plugin_s(site: Path) -> None:
    with pytest.raises(ConfigError, match=r"no backend 'zzz' \(known: .*torch; a plugin such as agentrl-zzz may"):
        Plugins().get("backends", "zzz")
    with pytest.raises(ConfigError) as caught:
        Plugins().get("backends", "tourch")
    assert "agentrl-" not in str(caught.value)


def test_two_distributions_may_claim_a_name_until_it_is_used(site: Path) -> None:
    for name in ("agentrl-one", "Agentrl_Two"):
        module = f"{name[-3:].lower()}_mod"
        entries = {"agentrl.agents": {"twin": f"{module}:Agent", f"own-{module}": f"{module}:Agent"}}
        install(site, name, entries, files={f"{module}.py": AGENT})
    plugins = Plugins()
    assert plugins.get("agents", "own-one_mod").__module__ == "one_mod"
    with pytest.raises(PluginError, match=r"claimed by .* \(write Agentrl_Two/twin or agentrl-one/twin\)"):
        plugins.get("agents", "twin")
    assert plugins.get("agents", "agentrl-one/twin").__module__ == "one_mod"
    assert plugins.get("agents", "agentrl-two/twin").__module__ == "two_mod"


def test_an_entry_point_file_that_cannot_be_read_breaks_its_own_distribution_alone(site: Path) -> None:
    info = install(site, "agentrl-bad", {})
    (info / "entry_points.txt").write_text("[agentrl.agents]\nno equals sign\n")
    install(site, "agentrl-good", {"agentrl.agents": {"good": "good_mod:Agent"}}, files={"good_mod.py": AGENT})
    plugins = Plugins()
    assert plugins.get("agents", "good")
    assert ["entry_points.txt is malformed" in broken.reason for broken in plugins.broken] == [True]


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "agentrl-good", {"agentrl.agents": {"old": "m:A"}}, version="1.0")
    newer = tmp_path / "newer"
    install(newer, "agentrl_good", {"agentrl.agents": {"new": "m:A"}}, version="2.0")
    monkeypatch.syspath_prepend(newer)
    names = [entry.name for entry in Plugins().entries("agents")]
    assert "new" in names
    assert "old" not in names


@pytest.mark.parametrize(
    ("requirement", "admitted"),
    [
        ("agentrl-core>=0.0.1", True),
        ("AgentRL.core >=0.0.1,<99", True),
        ("agentrl-core", True),
        ("agentrl-core>=99; extra == 'future'", True),
        ("agentrl-core-extras>=99", True),
        ("agentrl-core>=99", False),
        ("agentrl_core<0.0.1", False),
        ("agentrl-core (unreadable", False),
    ],
)
def test_a_plugin_made_for_another_core_is_never_loaded(site: Path, requirement: str, admitted: bool) -> None:
    entries = {"agentrl.agents": {"good": "good_mod:Agent"}, "agentrl.plugins": {"hooks": "good_mod"}}
    hooks = "from agentrl import hookimpl\n@hookimpl\ndef agentrl_configure(config):\n    pass\n"
    install(site, "agentrl-good", entries, requires=("click", requirement), files={"good_mod.py": AGENT + hooks})
    plugins = Plugins()
    plugins.load()
    assert ("good_mod" in sys.modules) is admitted
    assert ("good" in [entry.name for entry in plugins.entries("agents")]) is admitted
    if admitted:
        assert not plugins.broken
        return
    assert [broken.name for broken in plugins.broken] == ["agentrl-good"]
    with pytest.raises(PluginError, match=r"agent 'good' of agentrl-good 1\.0 is left out: it"):
        plugins.get("agents", "good")


@pytest.mark.parametrize("name", ["agentrl-good", "good", "Agentrl_Good", "agentrl-good/first", "first"])
def test_a_plugin_is_disabled_by_its_distribution_or_an_entrys_name(site: Path, name: str) -> None:
    entries = {"agentrl.agents": {"first": "good_mod:Agent"}, "agentrl.rewards": {"second": "good_mod:Agent"}}
    install(site, "agentrl-good", entries, files={"good_mod.py": AGENT})
    plugins = Plugins(disabled=[name])
    assert "first" not in [entry.name for entry in plugins.entries("agents")]
    assert ("second" in [entry.name for entry in plugins.entries("rewards")]) is name.endswith("first")
    with pytest.raises(ConfigError, match=f"disabled by -p no:{name}"):
        plugins.get("agents", "first")


def test_the_environment_disables_plugins_too_and_may_name_some_that_are_not_here(site: Path) -> None:
    install(site, "agentrl-good", {"agentrl.agents": {"good": "good_mod:Agent"}})
    plugins = Plugins(environ={"AGENTRL_DISABLE_PLUGINS": "elsewhere, good,"})
    assert plugins.disabled == ("elsewhere", "good")
    assert plugins.missing == ("elsewhere",)
    with pytest.raises(ConfigError, match="disabled by AGENTRL_DISABLE_PLUGINS"):
        plugins.get("agents", "good")


def test_disabling_what_is_not_installed_is_an_error(site: Path) -> None:
    install(site, "agentrl-weather", {"agentrl.agents": {"good": "good_mod:Agent"}})
    with pytest.raises(ConfigError, match=r"no plugin 'wether' to disable \(did you mean 'agentrl-weather'"):
        Plugins(disabled=["wether"])


def test_disabling_one_of_two_claimants_settles_the_conflict(site: Path) -> None:
    for name in ("one", "two"):
        entries = {"agentrl.agents": {"twin": f"{name}_mod:Agent"}}
        install(site, f"agentrl-{name}", entries, files={f"{name}_mod.py": AGENT})
    assert Plugins(disabled=["one"]).get("agents", "twin").__module__ == "two_mod"
