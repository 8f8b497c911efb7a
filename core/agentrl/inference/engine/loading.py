"""From a Hugging Face folder to a decoder that is known to be exact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agentrl.errors import BackendError, one_line, shortened
from agentrl.inference.device import find_device
from agentrl.inference.engine.decoder import Decoder, unsupported
from agentrl.inference.engine.kv import KVLayout
from agentrl.inference.engine.lean import LeanNetwork
from agentrl.inference.engine.network import Network, PlainNetwork
from agentrl.inference.engine.probe import inexactness
from agentrl.inference.engine.settings import TorchSettings
from agentrl.inference.engine.stops import Decodes
from agentrl.inference.progress_bars import no_progress_bars

__all__ = ["context_length", "kv_tokens_in_memory", "load_decoder", "load_tokenizer"]

_LONGEST_DEFAULT = 32768


def load_decoder(folder: Path, settings: TorchSettings) -> Decoder:
    """Load the model; raises ``BackendError`` where that fails or it does not decode exactly."""
    device = find_device(settings.device, "inference.backend.device")
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = automatic if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        with no_progress_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BackendError(
            f"no causal language model loads from {folder}: {shortened(one_line(error), 160)}",
            fix="name a folder that AutoModelForCausalLM.from_pretrained takes",
        ) from error
    nn.Module.to(model, device).train(False)
    return _exact(model)


def _exact(model: PreTrainedModel) -> Decoder:
    """A decoder in the quickest way that equals the plain forward; raises ``BackendError`` where none does."""
    networks: list[Network] = [PlainNetwork(model)]
    if LeanNetwork.suits(model):
        networks.insert(0, LeanNetwork(model))
    problems = []
    for network in networks:
        decoder = Decoder(model, network)
        problem = inexactness(decoder)
        if problem is None:
            return decoder
        problems.append(problem)
    raise unsupported(model, problems[-1])


def load_tokenizer(folder: Path) -> Decodes | None:
    """The folder's tokenizer, if it has one."""
    if not (folder / "tokenizer_config.json").is_file() and not (folder / "tokenizer.json").is_file():
        return None
    return cast(Decodes, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def context_length(decoder: Decoder, settings: TorchSettings) -> int:
    """Prompt and completion together; raises ``BackendError`` for a setting beyond what the model knows."""
    known: int | None = getattr(decoder.config, "max_position_embeddings", None)
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length the rotations of every row would change with the longest one's.
        known = rope["original_max_position_embeddings"]
    wanted = settings.context_length
    if wanted is None:
        return min(known or _LONGEST_DEFAULT, _LONGEST_DEFAULT)
    if known is not None and wanted > known:
        raise BackendError(
            f"inference.backend.context_length={wanted} is beyond the model's {known} positions",
            fix=f"set it to at most {known}",
        )
    return wanted


def kv_tokens_in_memory(layout: KVLayout) -> int:
    """Tokens of KV cache that half of the GPU's free memory holds, or a quarter of the machine's."""
    if layout.device.type == "cuda":
        share = torch.cuda.mem_get_info(layout.device)[0] // 2
    else:
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return max(int(share) // layout.bytes_per_token, 1)
