"""The advantage estimator ``plugin-name`` for agentrl."""
