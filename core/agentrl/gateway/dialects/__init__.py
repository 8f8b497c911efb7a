"""The wire protocols that the gateway serves by itself, one module each. Plugins add others; see the contract."""
