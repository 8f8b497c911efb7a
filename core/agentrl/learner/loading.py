"""Loading a model to train, and the type that it computes in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from agentrl.errors import ConfigError, one_line
from agentrl.inference.adapter_folder import base_of
from agentrl.inference.merging import load_whole

__all__ = ["check_unquantised", "has_room_in_float32", "load_model", "precision_on"]


def check_unquantised(folder: Path) -> None:
    """Raise ``ConfigError`` where the model in ``folder``, or the base of its adapter, has quantised weights.

    Neither the weights can be trained then nor an adapter over them: the sampler would compute with them rounded in
    another way than the learner, and a checkpoint could not be merged. A folder without a readable config passes.
    """
    try:
        config = json.loads((base_of(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # whoever loads it says what is wrong
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if not found:
        return
    named = found if isinstance(found, dict) else {}
    bits = next(
        (f" to {each} bits" for each in (4, 8) if named.get(f"load_in_{each}bit") or named.get("bits") == each), ""
    )
    how = f" ({named['quant_method']})" if named.get("quant_method") else ""
    raise ConfigError(
        f"the weights of model folder {folder} are quantised{bits}{how}, and such are not trained, with an adapter "
        "neither: sampler and learner would round them differently, and a checkpoint could not be merged",
        fix="name the model that it was made from, and where memory is short set training.lora, "
        "training.precision=bfloat16 or training.gradient_checkpointing=true",
        key="model.name",
    )


def load_model(folder: Path) -> PreTrainedModel:
    """Load the model in ``folder`` into the CPU's memory, in float32; an adapter is merged into its base.

    Raises ``ConfigError`` for a folder that holds no causal language model, for quantised weights, and for an adapter
    that does not fit its base.
    """
    check_unquantised(folder)
    try:
        model = load_whole(folder, torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model folder {folder} does not load as a causal language model: {one_line(error)}",
            fix="name a folder that `save_pretrained` wrote",
        ) from error
    model.generation_config = GenerationConfig.from_model_config(model.config)  # the folder's own may not be savable
    return model


def has_room_in_float32(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether ``device`` holds the weights of ``model`` in float32 for a moment, as they are loaded."""
    if device.type != "cuda":
        return True
    free: int = torch.cuda.mem_get_info(device)[0]
    return 4 * model.num_parameters() < free


def precision_on(device: torch.device, precision: str) -> torch.dtype:
    """The type that ``training.precision`` means on ``device``, of the weights and of what is computed with them."""
    half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32
