"""The suites and fixtures that core has for plugins."""

from __future__ import annotations

pytest_plugins = ["agentrl.testing"]
