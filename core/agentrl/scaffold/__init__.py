"""What ``agentrl new-plugin`` writes: a distribution that installs, is listed, passes its tests and trains."""

from agentrl.scaffold.commands import next_commands
from agentrl.scaffold.naming import PluginKind, PluginName, plugin_name
from agentrl.scaffold.writing import write_plugin

__all__ = ["PluginKind", "PluginName", "next_commands", "plugin_name", "write_plugin"]
