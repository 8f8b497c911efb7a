"""Hooks ``plugin-name`` for agentrl."""
