"""What ``agentrl new-plugin`` writes: a distribution that installs, is listed, passes its tests and trains.

``names`` finds the spellings of its name, ``writing`` fills in the templates of its kind, and ``commands`` lists the
commands to go on with.
"""

from agentrl.scaffold.commands import next_commands
from agentrl.scaffold.names import PluginKind, PluginName, plugin_name
from agentrl.scaffold.writing import write_plugin

__all__ = ["PluginKind", "PluginName", "next_commands", "plugin_name", "write_plugin"]
