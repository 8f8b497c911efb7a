"""The torch engine: a slot-based continuous-batching decoder over any Hugging Face causal language model."""
