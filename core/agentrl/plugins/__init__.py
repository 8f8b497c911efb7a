"""Plugins: agents, rewards, backends and every other part of a run that is chosen by name.

A distribution names objects in entry-point groups, one a kind (``agentrl.agents``, ``agentrl.rewards``, …;
see ``kinds``), and takes part in a run through hooks (group ``agentrl.plugins``; see ``hookspecs``)::

    [project.entry-points."agentrl.agents"]
    my-agent = "my_package.agents:MyAgent"

``Plugins`` finds and loads them. Importing this package imports no plugin.
"""

from agentrl.plugins.entries import Broken, Distribution, Entry
from agentrl.plugins.kinds import HOOKS, KINDS, Kind
from agentrl.plugins.manager import Plugins
from agentrl.plugins.registry import Registry

__all__ = ["HOOKS", "KINDS", "Broken", "Distribution", "Entry", "Kind", "Plugins", "Registry"]
