"""What `agentrl doctor` looks at, one module a subject."""
