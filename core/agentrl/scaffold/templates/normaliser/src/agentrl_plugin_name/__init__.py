"""The normaliser ``plugin-name`` for agentrl."""
