"""What the tracker's rules are."""

from pathlib import Path

from agentrl.runs.contract import RunInfo

from agentrl_plugin_name.tracker import PluginNameTracker


def test_it_writes_what_is_due_and_nothing_else(tmp_path: Path) -> None:
    tracker = PluginNameTracker(PluginNameTracker.Settings(every=2))
    tracker.start(RunInfo("run", tmp_path, agent="math", model="tiny"), {})
    for step in range(4):
        tracker.log(step, {"reward/mean": step / 4})
    tracker.finish("completed")
    written = (tmp_path / "plugin-name.csv").read_text().splitlines()
    assert written == ["step,metric,value", "0,reward/mean,0.0", "2,reward/mean,0.5"]
