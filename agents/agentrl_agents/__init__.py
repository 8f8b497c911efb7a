"""The bundled agents in the plain OpenAI SDK, and the model `tiny` that they can train."""
