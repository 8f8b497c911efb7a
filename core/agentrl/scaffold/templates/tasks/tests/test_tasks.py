"""What the task set's own rules are."""

from agentrl_plugin_name.tasks import PluginNameTasks


def test_another_seed_asks_for_other_sums() -> None:
    asked = []
    for seed in (0, 1):
        settings = PluginNameTasks.Settings(size=8, seed=seed)
        tasks = PluginNameTasks(settings)
        asked.append([tasks[index]["question"] for index in range(len(tasks))])
    assert asked[0] != asked[1]
