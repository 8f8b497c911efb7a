"""The conversion of a quantised GGUF file to a Hugging Face model folder."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

__all__ = ["convert"]


def convert(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the GGUF ``file`` into ``folder``, with weights in float32."""
    # The progress bar of another library, which off a terminal would be one line of hundreds.
    unseen = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with _no_progress_bars(), unseen:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        # The weights are plain numbers now; `save_pretrained` would refuse what still calls itself quantised.
        del model.config.quantization_config
        model.is_quantized = False
        model.hf_quantizer = None
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Within it transformers draws no progress bars; afterwards it does as before."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
