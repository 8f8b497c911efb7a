"""The command ``plugin-name`` for agentrl."""
