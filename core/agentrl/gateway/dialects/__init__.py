"""Wire protocols that the gateway speaks, one module each."""
