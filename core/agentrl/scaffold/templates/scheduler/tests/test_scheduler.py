"""What the scheduler's rules are."""

import os

import pytest

from agentrl_plugin_name.scheduler import PluginNameScheduler


def test_it_trains_once_with_its_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(os, "nice", told.append)
    scheduler = PluginNameScheduler(PluginNameScheduler.Settings(niceness=5))
    assert scheduler.run(lambda: told.append("trained") or "summary") == "summary"
    assert told == [5, "trained"]
