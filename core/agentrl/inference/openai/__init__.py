"""The chat backend `openai`: any endpoint that speaks the chat completions API."""
