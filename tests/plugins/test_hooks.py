"""Hook plugins: what they register, how they are called, and what happens to those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plugins.installing import install

from agentrl.errors import ConfigError, PluginError
from agentrl.plugins import Plugins, hookspecs

HEAD = "from agentrl import hookimpl\n"
REGISTERS = HEAD + (
    "class Agent:\n    async def run(self, data):\n        return 1\n"
    "@hookimpl\ndef agentrl_register(registry):\n"
    "    registry.add('agents', 'by-object', Agent)\n"
    "    registry.add('agents', 'by-target', 'hooks_mod:Agent')\n"
    "    registry.add('tasks', 'set/of-tasks', 'nowhere:Tasks')\n"
)


def hook_plugin(site: Path, name: str, text: str) -> None:
    module = f"{name}_mod"
    install(site, f"agentrl-{name}", {"agentrl.plugins": {name: module}}, files={f"{module}.py": text})


def test_names_registered_at_run_time_are_listed_once_loaded_and_found_always(site: Path) -> None:
    hook_plugin(site, "hooks", REGISTERS)
    plugins = Plugins()
    assert "by-object" not in [entry.name for entry in plugins.entries("agents")]
    found = {plugins.get("agents", name) for name in ("by-object", "by-target", "agentrl-hooks/by-target")}
    assert [agent.__name__ for agent in found] == ["Agent"]
    entries = {entry.name: entry for entry in plugins.entries("agents")}
    assert entries["by-object"].target == "hooks_mod:Agent"
    assert entries["by-object"].distribution.name == "agentrl-hooks"
    assert plugins.has("tasks", "set/of-tasks")
    with pytest.raises(PluginError, match="importing nowhere raised"):
        plugins.get("tasks", "set/of-tasks")


def test_a_name_registered_at_run_time_can_conflict_with_an_entry_point(site: Path) -> None:
    hook_plugin(site, "hooks", REGISTERS)
    install(site, "agentrl-other", {"agentrl.agents": {"by-object": "hooks_mod:Agent"}})
    with pytest.raises(PluginError, match=r"write agentrl-hooks/by-object or agentrl-other/by-object"):
        Plugins().get("agents", "by-object")


def test_every_hook_reaches_every_plugin_with_the_arguments_that_it_takes(site: Path) -> None:
    specs = [name for name in vars(hookspecs) if name.startswith("agentrl_")]
    assert specs == [
        "agentrl_register",
        "agentrl_adapt_agent",
        "agentrl_configure",
        "agentrl_run_started",
        "agentrl_episode_finished",
        "agentrl_batch_ready",
        "agentrl_step_finished",
        "agentrl_evaluation_finished",
        "agentrl_checkpoint_saved",
        "agentrl_run_finished",
    ]
    hook_plugin(site, "first", HEAD + "@hookimpl\ndef agentrl_step_finished(metrics):\n    return metrics['loss']\n")
    hook_plugin(site, "second", HEAD + "@hookimpl\ndef agentrl_step_finished(step):\n    return step\n")
    assert sorted(Plugins().hook.agentrl_step_finished(step=3, metrics={"loss": 0.5})) == [0.5, 3]


def test_a_class_may_implement_hooks(site: Path) -> None:
    text = HEAD + "class P:\n    @hookimpl\n    def agentrl_step_finished(self, step):\n        return step\n"
    install(site, "agentrl-hooks", {"agentrl.plugins": {"hooks": "hooks_mod:P"}}, files={"hooks_mod.py": text})
    assert Plugins().hook.agentrl_step_finished(step=3, metrics={}) == [3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('no such chip')", r"importing bad_mod raised RuntimeError: no such chip"),
        (
            "def agentrl_step_finished(step): ...",
            "its agentrl_step_finished is not marked (put @agentrl.hookimpl above it)",
        ),
        ("x = 1", "it implements no hook"),
        (HEAD + "@hookimpl\ndef agentrl_step_fnished(step): ...", "agentrl_step_fnished"),
        (HEAD + "@hookimpl\ndef agentrl_step_finished(steps): ...", "steps"),
        (
            HEAD + "@hookimpl\ndef agentrl_register(registry): raise KeyError('gone')",
            r"KeyError: 'gone' in agentrl_reg",
        ),
        (HEAD + "@hookimpl\ndef agentrl_register(registry): registry.ad('agents')", "has no attribute 'ad'"),
    ],
)
def test_a_hook_plugin_that_fails_to_load_takes_part_in_nothing(site: Path, text: str, reason: str) -> None:
    hook_plugin(site, "bad", text + "\n")
    hook_plugin(site, "good", HEAD + "@hookimpl\ndef agentrl_step_finished(step):\n    return step\n")
    plugins = Plugins()
    assert plugins.hook.agentrl_step_finished(step=1, metrics={}) == [1]
    (broken,) = plugins.broken
    assert str(broken).startswith("bad (agentrl-bad 1.0): ")
    assert reason in broken.reason
    with pytest.raises(ConfigError, match=r"no agent 'nobody', unless a plugin that does not load has it \(bad"):
        plugins.get("agents", "nobody")


def test_what_a_hook_raises_names_its_plugin(site: Path) -> None:
    hook_plugin(site, "good", HEAD + "@hookimpl\ndef agentrl_step_finished(step):\n    return step\n")
    hook_plugin(site, "bad", HEAD + "@hookimpl\ndef agentrl_step_finished(metrics):\n    return metrics['loss']\n")
    with pytest.raises(
        PluginError, match=r"plugin 'agentrl-bad/bad' raised KeyError: 'loss' in agentrl_step"
    ) as caught:
        Plugins().hook.agentrl_step_finished(step=1, metrics={})
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_hook_may_refuse_a_configuration_in_its_own_words(site: Path) -> None:
    text = "from agentrl import ConfigError, hookimpl\n@hookimpl\ndef agentrl_configure(config):\n"
    hook_plugin(site, "strict", text + "    raise ConfigError('no', fix='yes')\n")
    with pytest.raises(ConfigError, match=r"^no \(yes\)$"):
        Plugins().hook.agentrl_configure(config=object())


def test_a_disabled_hook_plugin_is_not_loaded(site: Path) -> None:
    hook_plugin(site, "bad", "raise RuntimeError\n")
    plugins = Plugins(disabled=["bad"])
    plugins.load()
    assert plugins.broken == ()


def test_the_first_plugin_that_knows_an_object_adapts_it(site: Path) -> None:
    adapts = "@hookimpl\ndef agentrl_adapt_agent(obj):\n    return {result} if isinstance(obj, {kind}) else None\n"
    hook_plugin(site, "ints", HEAD + adapts.format(result="'int'", kind="int"))
    hook_plugin(site, "strings", HEAD + adapts.format(result="'str'", kind="str"))
    plugins = Plugins()
    assert [plugins.adapt_agent(obj) for obj in (1, "x", None)] == ["int", "str", None]


def test_loading_everything_finds_what_does_not_import(site: Path) -> None:
    install(site, "agentrl-bad", {"agentrl.agents": {"bad": "gone_mod:Agent"}})
    plugins = Plugins(disabled=["agentrl-core"])
    assert plugins.broken == ()
    plugins.load_everything()
    assert [(broken.name, broken.distribution.name) for broken in plugins.broken] == [("bad", "agentrl-bad")]


def test_each_plugin_can_be_called_alone_by_its_name(site):
    hook_plugin(site, "first", HEAD + "@hookimpl\ndef agentrl_step_finished(metrics):\n    return metrics['loss']\n")
    hook_plugin(site, "second", HEAD + "@hookimpl\ndef agentrl_step_finished(step):\n    return 1 / step\n")
    callers = Plugins().hook.by_plugin("agentrl_step_finished")
    named = {name.rpartition("/")[2]: caller for name, caller in callers.items()}
    assert named["first"](step=0, metrics={"loss": 0.5}) == [0.5]
    with pytest.raises(PluginError, match=r"second' raised ZeroDivisionError.* in agentrl_step_finished"):
        named["second"](step=0, metrics={})
    assert Plugins().hook.by_plugin("agentrl_batch_ready") == {}
