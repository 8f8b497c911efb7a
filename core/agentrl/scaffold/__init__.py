"""What `agentrl new-plugin` writes: distributions that install, list themselves, pass their tests and train."""
