"""The model ``plugin-name`` for agentrl."""
