"""The inference backend ``plugin-name`` for agentrl."""
