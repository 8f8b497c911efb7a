"""The tracker ``plugin-name`` for agentrl."""
