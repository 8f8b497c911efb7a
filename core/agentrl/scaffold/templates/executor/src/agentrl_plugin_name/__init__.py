"""The executor ``plugin-name`` for agentrl."""
