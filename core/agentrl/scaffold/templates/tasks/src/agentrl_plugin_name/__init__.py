"""The task set ``plugin-name`` for agentrl."""
