"""The scheduler ``plugin-name`` for agentrl."""
