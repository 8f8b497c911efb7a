"""What the hooks' rules are."""

import json
from pathlib import Path
from types import SimpleNamespace

from agentrl_plugin_name.hooks import PluginNameHooks


def test_the_outcomes_of_a_run_are_counted(tmp_path: Path) -> None:
    hooks = PluginNameHooks()
    hooks.agentrl_episode_finished(
        SimpleNamespace(outcome="rewarded")
    )  # of another run
    hooks.agentrl_run_started()
    for outcome in ("rewarded", "rewarded", "failed"):
        hooks.agentrl_episode_finished(SimpleNamespace(outcome=outcome))
    hooks.agentrl_run_finished(SimpleNamespace(folder=tmp_path))
    counts = json.loads((tmp_path / "plugin-name.json").read_text())
    assert counts == {"rewarded": 2, "failed": 1}
