"""The agent ``plugin-name`` for agentrl."""
