"""The reward ``plugin-name`` for agentrl."""
