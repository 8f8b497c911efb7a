"""From quantised GGUF to a Hugging Face folder."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentrl.inference.model_folder import no_progress_bars

__all__ = ["convert"]


def convert(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the GGUF ``file`` into ``folder``, with weights in float32."""
    # A bar of another library's, which off a terminal would be hundreds of lines in one.
    unseen = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with no_progress_bars(), unseen:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # The weights are plain numbers now; `save_pretrained` would refuse what still calls itself quantised.
        del model.config.quantization_config
        model.is_quantized = False
        model.hf_quantizer = None
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
