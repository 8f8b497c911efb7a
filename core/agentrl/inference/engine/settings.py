"""What a configuration may set about the torch engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentrl.config.models import Section

__all__ = ["TorchSettings"]


class TorchSettings(Section):
    """The keys beside ``inference.backend.name: torch``."""

    device: str = "auto"
    """Where to sample: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and KV cache; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    context_length: int | None = Field(None, ge=2)
    """Most tokens of prompt and completion together; null for what the model's config says, at most 32768."""
    max_batch_tokens: int = Field(2048, ge=1)
    """Most prompt tokens computed between two decoding steps."""
    kv_cache_tokens: int | None = Field(None, ge=1)
    """Most tokens of KV cache for running completions; null for what half of a GPU's
    free memory holds, or a quarter of the machine's."""
    prefix_cache_tokens: int | None = Field(None, ge=0)
    """Most tokens of KV cache kept for prompts that begin alike: 0 recomputes every prompt; null for a quarter of
    what the memory holds by default, at most 65536."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a step; null for one where the model is small, else torch's own number."""
