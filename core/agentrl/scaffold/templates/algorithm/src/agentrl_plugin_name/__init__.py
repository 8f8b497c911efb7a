"""The algorithm ``plugin-name`` for agentrl."""
