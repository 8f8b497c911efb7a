"""Hosts that are on this machine, and are taken for ones on another."""

from __future__ import annotations

from typing import Any

from agentrl.hosting.local import LocalHosts

__all__ = ["Elsewhere"]


class Elsewhere(LocalHosts):
    """Starts processes here; whoever asks for them may rely on no folder and no loopback interface."""

    elsewhere = True

    def __init__(self) -> None:
        self.started: list[Any] = []
        """The hosts, in the order in which they were started."""
        self.asked: list[Any] = []
        """Their specifications."""

    def start(self, specs: Any, **keys: Any) -> Any:
        self.asked += specs
        hosts = super().start(specs, **keys)
        self.started += hosts
        return hosts
