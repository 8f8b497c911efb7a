"""Plugins: agents, rewards, backends and every other part of a run that is chosen by name.

A distribution names objects in entry-point groups, one a kind (``agentrl.agents``, ``agentrl.rewards``, …;
see ``kinds``), and takes part in a run through hooks (group ``agentrl.plugins``; see ``hookspecs``)::

    [project.entry-points."agentrl.agents"]
    my-agent = "my_package.agents:MyAgent"

``Plugins`` finds and loads them. Importing this package imports no plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl._lazy import attributes

if TYPE_CHECKING:
    from agentrl.plugins.entries import Broken, Distribution, Entry
    from agentrl.plugins.hooks import Registry
    from agentrl.plugins.kinds import HOOKS, KINDS, Kind
    from agentrl.plugins.manager import Plugins

__all__ = ["HOOKS", "KINDS", "Broken", "Distribution", "Entry", "Kind", "Plugins", "Registry"]

__getattr__, __dir__ = attributes(
    __name__,
    {
        "agentrl.plugins.entries": ["Broken", "Distribution", "Entry"],
        "agentrl.plugins.hooks": ["Registry"],
        "agentrl.plugins.kinds": ["HOOKS", "KINDS", "Kind"],
        "agentrl.plugins.manager": ["Plugins"],
    },
)
